-- Begin an attempt: exchange the dispatch token for the run's own (laws 3, 5, 7).
-- ARGV: 1 turn_id, 2 dispatch token, 3 run token, 4 node, 5 plan (JSON; kept only by the first claim),
--       6 how many messages of history, 7 pool
-- Returns {'ok', attempt, client_id, conversation_id, node, plan, options, remaining ms, number of messages, messages …,
-- log entries …} or {'gone'|'superseded'|'exhausted'}. Idempotent by run token.
local turn_id, key = ARGV[1], K.turn .. ARGV[1]
local t = redis.call('HMGET', key, 'state', 'token', 'attempt', 'barren', 'client_id', 'conversation_id', 'message_seq',
  'plan', 'seq', 'deadline', 'options', 'node', 'personality')
if t[1] ~= 'open' then return { 'gone' } end
local attempt, said, now = tonumber(t[3]), tonumber(t[9]), now_ms()
local plan = t[8] or ARGV[5]
local event

if t[2] ~= ARGV[3] then
  if t[2] ~= ARGV[2] then return { 'superseded' } end
  if tonumber(t[4]) >= BARREN_ATTEMPTS then return { 'exhausted' } end
  attempt = attempt + 1
  redis.call('HSET', key, 'token', ARGV[3], 'attempt', attempt, 'plan', plan, 'generated_on', ARGV[4])
  redis.call('HSETNX', key, 'pool', ARGV[7])
  redis.call('HINCRBY', key, 'barren', 1)
  if attempt == 1 then
    event = cjson.encode({ type = 'started', turn_id = turn_id, conversation_id = t[6], personality = t[13], node = ARGV[4],
      attempt = 1 })
  else
    event = cjson.encode({ type = 'takeover', turn_id = turn_id, attempt = attempt, after_seq = said, generated_on = ARGV[4],
      reason = 'lost' })
  end
  redis.call('XADD', log_key(turn_id), said .. '-' .. attempt, 'e', event)
end
lease(turn_id, now)

local out = { 'ok', tostring(attempt), t[5], t[6], t[12], plan, t[11], ms(tonumber(t[10]) - now), '0' }
local last, names = tonumber(t[7]), {}
for seq = math.max(1, last - tonumber(ARGV[6]) + 1), last do names[#names + 1] = K.message .. t[6] .. ':' .. seq end
local count = 0
for _, message in ipairs(redis.call('MGET', unpack(names))) do
  if message then
    out[#out + 1] = message
    count = count + 1
  end
end
out[9] = tostring(count)
for _, entry in ipairs(entries(turn_id, '1-0')) do out[#out + 1] = entry end
if event then tell(t[5], { event }) end
return out
