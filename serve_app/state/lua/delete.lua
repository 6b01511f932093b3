-- Delete a conversation; its open turn must have ended (law 12).
-- ARGV: 1 conversation_id, 2 client_id
-- Returns {'ok'} | {'open', turn_id} | {'none'}. A tombstone without text stays, so that a second call answers 'ok' and
-- nothing that comes late is stored.
local id, key = ARGV[1], K.conversation .. ARGV[1]
local c = redis.call('HMGET', key, 'owner', 'last_seq', 'open_turn', 'deleted')
if c[1] ~= ARGV[2] then return { 'none' } end
if c[4] then
  barrier()
  return { 'ok' }
end
if c[3] and is_open(redis.call('HGET', K.turn .. c[3], 'state')) then return { 'open', c[3] } end
local last = tonumber(c[2])
-- Turns of a conversation end one after another, and a log lives LOG_SECONDS after its turn: the newest first, back to one
-- that ended longer ago.
for seq = last, 1, -1 do
  local raw = redis.call('GET', K.message .. id .. ':' .. seq)
  local turn_id = raw and cjson.decode(raw).turn_id
  if turn_id then
    if redis.call('TTL', K.turn .. turn_id) < TOMBSTONE_SECONDS - LOG_SECONDS then break end
    redis.call('UNLINK', log_key(turn_id))
    redis.call('HDEL', K.turn .. turn_id, 'undelivered')
  end
end
for from = 1, last, 1000 do
  local names = {}
  for seq = from, math.min(last, from + 999) do names[#names + 1] = K.message .. id .. ':' .. seq end
  redis.call('UNLINK', unpack(names))
end
redis.call('DEL', key)
redis.call('HSET', key, 'owner', ARGV[2], 'deleted', 1, 'last_seq', 0)
redis.call('EXPIRE', key, TOMBSTONE_SECONDS)
redis.call('ZREM', K.conversations .. ARGV[2], id)
return { 'ok' }
