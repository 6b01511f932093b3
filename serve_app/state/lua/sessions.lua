-- Live sessions, latest activity first. ARGV: 1 limit, 2 offset
-- Returns {total, session (JSON) …}
local now = now_ms()
redis.call('ZREMRANGEBYSCORE', K.sessions, '-inf', ms(now))
local out = { tostring(redis.call('ZCARD', K.sessions)) }
for _, id in ipairs(redis.call('ZREVRANGE', K.sessions, tonumber(ARGV[2]), tonumber(ARGV[2]) + tonumber(ARGV[1]) - 1)) do
  local s = redis.call('GET', K.session .. id)
  if s then out[#out + 1] = s end
end
return out
