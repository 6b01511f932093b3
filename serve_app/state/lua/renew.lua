-- include: _accepted.lua
-- Renew leases (law 7), many in one call. ARGV: triples of turn_id, token, event ('' or `queued`, for the devices).
-- Returns the tokens that hold nothing any more. Past its deadline (and some grace, to say so itself) nobody keeps a turn:
-- its lease lapses, and a sweep ends it.
local lost, queued, now = {}, {}, now_ms()
for i = 1, #ARGV, 3 do
  local t = redis.call('HMGET', K.turn .. ARGV[i], 'state', 'token', 'client_id', 'deadline', 'untold')
  if is_open(t[1]) and t[2] == ARGV[i + 1] then
    if now < tonumber(t[4]) + 2 * LEASE_MS then lease(ARGV[i], now) end
    if ARGV[i + 2] ~= '' then
      queued[#queued + 1] = { client_id = t[3], event = ARGV[i + 2], accepted = take_untold(t[5], ARGV[i]) }
    end
  else
    lost[#lost + 1] = ARGV[i + 1]
  end
end

for _, it in ipairs(queued) do
  local events = { it.event }
  tell_acceptance(it.accepted, events)
  tell(it.client_id, events)
end
return lost
