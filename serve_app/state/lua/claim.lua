-- include: _accepted.lua
-- Begin an attempt: exchange the dispatch token for the run's own (laws 3, 5, 7).
-- ARGV: 1 turn_id, 2 dispatch token, 3 run token, 4 node, 5 how many messages of history, 6 pool, 7 personality's name,
--       8 its version, 9 replica, 10 the model as it is shown, 11 which one it is: its engine's kind too, 12 the document, or ''
--       in the hope that it is kept already
-- Returns {'ok', attempt, client_id, conversation_id, node, same model ('1'), name, version, options, remaining ms, number of
-- messages, document ('' where name and version are those of the call), messages …, log entries …} |
-- {'gone'|'superseded'|'exhausted'} | {'describe'}: call again, with the document. Idempotent by run token.
-- The first claim pins the personality; later ones get what it pinned. Pool and model are each attempt's own: where one goes on
-- after what another model said, the token ids of what was said mean nothing any more, to nobody.
local turn_id, key = ARGV[1], K.turn .. ARGV[1]
local t = redis.call('HMGET', key, 'state', 'token', 'attempt', 'barren', 'client_id', 'conversation_id', 'message_seq',
  'speaks', 'seq', 'deadline', 'options', 'node', 'personality', 'pinned', 'untold', 'generated_on',
  'moved', 'why', 'mixed')
if t[1] ~= 'open' then return { 'gone' } end
local attempt, said, now = tonumber(t[3]), tonumber(t[9]), now_ms()
local pinned, mixed = t[14] or (ARGV[7] .. ':' .. ARGV[8]), t[19]
local event, accepted

if t[2] ~= ARGV[3] then
  if t[2] ~= ARGV[2] then return { 'superseded' } end
  if tonumber(t[4]) >= BARREN_ATTEMPTS then return { 'exhausted' } end
  if redis.call('EXPIRE', K.personality .. pinned, TOMBSTONE_SECONDS) == 0 then
    if ARGV[12] == '' then return { 'describe' } end
    pinned = ARGV[7] .. ':' .. ARGV[8]
    redis.call('SET', K.personality .. pinned, ARGV[12], 'EX', TOMBSTONE_SECONDS)
  end
  attempt = attempt + 1
  if said > 0 and t[8] ~= ARGV[11] then mixed = '1' end
  redis.call('HSET', key, 'token', ARGV[3], 'attempt', attempt, 'pool', ARGV[6], 'model', ARGV[10], 'speaks', ARGV[11],
    'pinned', pinned, 'generated_on', ARGV[4], 'mixed', mixed or '')
  redis.call('HINCRBY', key, 'barren', 1)
  redis.call('HDEL', key, 'moved', 'why', 'failure')
  if ARGV[9] ~= '' and redis.call('EXISTS', K.conversation .. t[6]) == 1 then
    redis.call('HSET', K.conversation .. t[6], 'warm', ARGV[9])
  end
  if attempt == 1 then
    event = cjson.encode({ type = 'started', turn_id = turn_id, conversation_id = t[6], personality = t[13], node = ARGV[4],
      attempt = 1, replica = ARGV[9], pool = ARGV[6], model = ARGV[10] })
  else
    event = cjson.encode({ type = 'takeover', turn_id = turn_id, attempt = attempt, after_seq = said, generated_on = ARGV[4],
      reason = t[17] and (t[18] or 'moved') or 'lost', replica = ARGV[9], pool = ARGV[6], model = ARGV[10] })
    redis.call('SET', K.last_takeover, cjson.encode({ at_ms = now, turn_id = turn_id, pool = ARGV[6],
      attempt = attempt, from_node = t[16] or '', to_node = ARGV[4] }))
  end
  redis.call('XADD', log_key(turn_id), said .. '-' .. attempt, 'e', event)
  accepted = take_untold(t[15], turn_id)
end
lease(turn_id, now)

local name, version = string.match(pinned, '^(.*):(.*)$')
local document = ''
if name ~= ARGV[7] or version ~= ARGV[8] then document = redis.call('GET', K.personality .. pinned) or '' end
local same = (mixed or '') == '' and '1' or ''
local out = { 'ok', tostring(attempt), t[5], t[6], t[12], same, name, version, t[11], ms(tonumber(t[10]) - now), '0', document }
local last, names = tonumber(t[7]), {}
for seq = math.max(1, last - tonumber(ARGV[5]) + 1), last do names[#names + 1] = K.message .. t[6] .. ':' .. seq end
local count = 0
for _, message in ipairs(redis.call('MGET', unpack(names))) do
  if message then
    out[#out + 1] = message
    count = count + 1
  end
end
out[11] = tostring(count)
for _, entry in ipairs(entries(turn_id, '1-0')) do out[#out + 1] = entry end
if event then
  local events = { event }
  tell_acceptance(accepted, events)
  tell(t[5], events)
end
return out
