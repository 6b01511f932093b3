-- include: _session.lua
-- include: _accepted.lua
-- Keep a user message and open its turn (laws 6, 11).
-- ARGV 1: a JSON object with the fields of NewTurn, `message` (the stored form) and `options` (a string).
-- Returns {'begun'|'attached', turn_id, conversation_id, message seq, personality, the replica that answered this conversation
-- before or ''} or {'refused', code, detail}.
-- Idempotent by turn_id: a second call finds its turn and answers the same. Refusals write nothing. With replicas, the
-- caller waits for what was written before it says so to anybody, and the turn stays `untold` until then (law 8).
local a = cjson.decode(ARGV[1])
local turn = K.turn .. a.turn_id

local function known(how, turn_id)
  local t = redis.call('HMGET', K.turn .. turn_id, 'conversation_id', 'message_seq', 'personality')
  if not t[1] then return nil end
  barrier()
  return { how, turn_id, t[1], t[2], t[3], '' }
end

local again = known('begun', a.turn_id)
if again then return again end

local idempotency = K.idempotency .. a.client_id .. ':' .. a.idempotency_key
if a.idempotency_key ~= '' then
  local first = redis.call('GET', idempotency)
  if first then
    first = cjson.decode(first)
    if first.body_hash ~= a.body_hash then return { 'refused', 'idempotency_mismatch', first.turn_id } end
    local attached = known('attached', first.turn_id)
    if attached then return attached end
  end
end

local now = now_ms()
local session, new_session = touch_session(a.client_id, a.node, a.timestamp, now, false)

local id, personality = a.conversation_id, a.personality
if id ~= '' then
  local c = redis.call('HMGET', K.conversation .. id, 'owner', 'personality', 'deleted')
  if c[1] ~= a.client_id or c[3] then return { 'refused', 'no_conversation', id } end
  if personality == '' then personality = c[2] end
else
  if personality == '' then personality = a.default_personality end
  local current = session.conversations[personality]
  if current then
    local c = redis.call('HMGET', K.conversation .. current, 'owner', 'deleted')
    if c[1] == a.client_id and not c[2] then id = current end
  end
end

if id ~= '' then
  local open = redis.call('HGET', K.conversation .. id, 'open_turn')
  if open and is_open(redis.call('HGET', K.turn .. open, 'state')) then
    return { 'refused', 'turn_in_progress', open }
  end
end
if redis.call('ZCARD', K.open) >= a.max_open_turns then return { 'refused', 'overloaded', '' } end

if id == '' then
  id = free_conversation(a.client_id, a.unix)
  keep_conversation(id, a.client_id, personality, a.title, a.timestamp, now)
end
local conversation = K.conversation .. id
local seq = redis.call('HINCRBY', conversation, 'last_seq', 1)
redis.call('HSET', conversation, 'updated', a.timestamp, 'open_turn', a.turn_id)
if redis.call('HGET', conversation, 'title') == '' then redis.call('HSET', conversation, 'title', a.title) end
redis.call('ZADD', K.conversations .. a.client_id, ms(now), id)
redis.call('SET', K.message .. id .. ':' .. seq, a.message)
redis.call('HSET', turn, 'v', 1, 'state', 'open', 'token', a.token, 'client_id', a.client_id, 'conversation_id', id,
  'message_seq', seq, 'personality', personality, 'options', a.options, 'node', a.node, 'created', a.timestamp,
  'began', ms(now), 'deadline', ms(now + a.deadline_ms), 'attempt', 0, 'barren', 0, 'seq', 0,
  'idempotency_key', a.idempotency_key)
lease(a.turn_id, now)
redis.call('ZADD', K.client_turns .. a.client_id, ms(now), a.turn_id)
redis.call('PERSIST', K.client_turns .. a.client_id)
if a.idempotency_key ~= '' then
  redis.call('SET', idempotency, cjson.encode({ turn_id = a.turn_id, body_hash = a.body_hash }), 'EX',
    TOMBSTONE_SECONDS + math.ceil(a.deadline_ms / 1000))
end
session.conversations[personality] = id
keep_session(session, now)
if REPLICAS > 0 then redis.call('HSET', turn, 'untold', '1') end
if a.undelivered then redis.call('HSET', turn, 'undelivered', '1') end

if new_session then tell_session(session) end
if REPLICAS == 0 then
  local events = {}
  tell_acceptance(acceptance(a.turn_id, a.client_id, id, seq, personality, a), events)
  tell(a.client_id, events)
end
return { 'begun', a.turn_id, id, tostring(seq), personality, redis.call('HGET', conversation, 'warm') or '' }
