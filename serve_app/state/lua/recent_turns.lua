-- A client's turns whose logs are kept, oldest first; the latest 100. ARGV: 1 client_id
-- Returns a flat list: turn_id, state …  Forgets those whose log is gone.
local key, out = K.client_turns .. ARGV[1], {}
for _, id in ipairs(redis.call('ZRANGE', key, -100, -1)) do
  local state = redis.call('HGET', K.turn .. id, 'state')
  if is_open(state) then state = 'open' end
  if state and (state == 'open' or redis.call('EXISTS', log_key(id)) == 1) then
    out[#out + 1] = id
    out[#out + 1] = state
  else
    redis.call('ZREM', key, id)
  end
end
return out
