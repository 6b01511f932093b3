-- Renew leases (law 7), many in one call. ARGV: triples of turn_id, token, event ('' or `queued`, for the devices).
-- Returns the ids of the turns that the caller no longer holds.
local lost, now = {}, now_ms()
for i = 1, #ARGV, 3 do
  local t = redis.call('HMGET', K.turn .. ARGV[i], 'state', 'token', 'client_id')
  if t[1] == 'open' and t[2] == ARGV[i + 1] then
    lease(ARGV[i], now)
    if ARGV[i + 2] ~= '' then tell(t[3], { ARGV[i + 2] }) end
  else
    lost[#lost + 1] = ARGV[i]
  end
end
return lost
