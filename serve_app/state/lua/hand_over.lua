-- Let others take on turns that nobody has claimed yet: the router that has them is leaving (law 7).
-- ARGV: pairs of turn_id, dispatch token. Those that still have it are due at once. Idempotent.
local now = now_ms()
for i = 1, #ARGV, 2 do
  local t = redis.call('HMGET', K.turn .. ARGV[i], 'state', 'token')
  if t[1] == 'open' and t[2] == ARGV[i + 1] then redis.call('ZADD', K.open, 'LT', ms(now), ARGV[i]) end
end
return 'ok'
