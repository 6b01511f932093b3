-- Who has said lately that it is there. ARGV: 1 'node' or 'replica'. Returns {record (JSON) …}
local index, out = K[ARGV[1] .. 's'], {}
redis.call('ZREMRANGEBYSCORE', index, '-inf', ms(now_ms()))
for _, name in ipairs(redis.call('ZRANGE', index, 0, -1)) do
  local record = redis.call('GET', K[ARGV[1]] .. name)
  if record then out[#out + 1] = record end
end
return out
