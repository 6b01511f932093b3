-- Renew leases (law 7), many in one call. ARGV: triples of turn_id, token, event ('' or `queued`, for the devices).
-- Returns the tokens that hold nothing any more. Past its deadline (and some grace, to say so itself) nobody keeps a turn:
-- its lease lapses, and a sweep ends it.
local lost, now = {}, now_ms()
for i = 1, #ARGV, 3 do
  local t = redis.call('HMGET', K.turn .. ARGV[i], 'state', 'token', 'client_id', 'deadline')
  if t[1] == 'open' and t[2] == ARGV[i + 1] then
    if now < tonumber(t[4]) + 2 * LEASE_MS then lease(ARGV[i], now) end
    if ARGV[i + 2] ~= '' then tell(t[3], { ARGV[i + 2] }) end
  else
    lost[#lost + 1] = ARGV[i + 1]
  end
end
return lost
