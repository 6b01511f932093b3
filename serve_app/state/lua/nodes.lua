-- The nodes that have said lately that they are there. Returns {record (JSON) …}
redis.call('ZREMRANGEBYSCORE', K.nodes, '-inf', ms(now_ms()))
local out = {}
for _, node in ipairs(redis.call('ZRANGE', K.nodes, 0, -1)) do
  local record = redis.call('GET', K.node .. node)
  if record then out[#out + 1] = record end
end
return out
