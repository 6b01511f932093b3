-- A client's turns whose logs are kept, oldest first; the latest 100. ARGV: 1 client_id
-- Returns a flat list: turn_id, 'open' or 'ended', 'undelivered' or '' …  Forgets those whose log is gone. A turn that ended
-- before any run claimed it has no log; it counts for as long where its end is owed.
local key, out = K.client_turns .. ARGV[1], {}
for _, id in ipairs(redis.call('ZRANGE', key, -100, -1)) do
  local t = redis.call('HMGET', K.turn .. id, 'state', 'undelivered')
  local open = is_open(t[1])
  local fresh = t[1] and redis.call('EXISTS', log_key(id)) == 1
  if not open and t[2] then fresh = redis.call('TTL', K.turn .. id) >= TOMBSTONE_SECONDS - LOG_SECONDS end
  if open or fresh then
    out[#out + 1] = id
    out[#out + 1] = open and 'open' or 'ended'
    out[#out + 1] = t[2] and 'undelivered' or ''
  else
    redis.call('ZREM', key, id)
  end
end
return out
