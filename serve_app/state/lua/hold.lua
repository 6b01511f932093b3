-- Take an open turn away from its holder in order to end it: stop, failure by a router (laws 1, 3).
-- ARGV: 1 turn_id, 2 new token, 3 '1' if somebody asked to stop it, 4 '' or the token it must still have
-- Returns {'ok', client_id, conversation_id, personality, node, generated_on, attempt, pool, model, with which failure its last
-- run gave it back ('' for none), log entries …} | {'gone'} | {'superseded'} | {'closing'}: it has its end, which `announce`
-- shows. Should the caller die before `finish`, the lease lapses and a sweep ends the turn the same way.
local turn_id, key = ARGV[1], K.turn .. ARGV[1]
local t = redis.call('HMGET', key, 'state', 'token', 'client_id', 'conversation_id', 'personality', 'node', 'generated_on',
  'attempt', 'pool', 'model', 'failure')
if t[1] ~= 'open' then return { t[1] == 'closing' and 'closing' or 'gone' } end
if ARGV[4] ~= '' and t[2] ~= ARGV[4] and t[2] ~= ARGV[2] then return { 'superseded' } end
redis.call('HSET', key, 'token', ARGV[2])
if ARGV[3] == '1' then redis.call('HSET', key, 'stopping', 1) end
lease(turn_id, now_ms())
local out = { 'ok', t[3], t[4], t[5], t[6], t[7] or '', t[8], t[9] or '', t[10] or '', t[11] or '' }
for _, entry in ipairs(entries(turn_id, '1-0')) do out[#out + 1] = entry end
return out
