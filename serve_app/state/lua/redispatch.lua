-- Take a turn back from a run that its router saw die (law 7).
-- ARGV: 1 turn_id, 2 new dispatch token, 3 the dispatch token before, 4 the dead run's token
-- Returns {'ok', personality, attempt, barren, stopping, overdue, pool} | {'gone'} | {'superseded'} | {'closing'}: the run died
-- after it had closed the turn, `announce` shows its end | {'wait'}: from the second death on, the lease must lapse first, so
-- that a poisoned turn does not take the engines down one after another.
-- Idempotent by new token.
local turn_id, key = ARGV[1], K.turn .. ARGV[1]
local t = redis.call('HMGET', key, 'state', 'token', 'personality', 'attempt', 'barren', 'stopping', 'deadline', 'pool')
if t[1] ~= 'open' then return { t[1] == 'closing' and 'closing' or 'gone' } end
if t[2] == ARGV[4] and tonumber(t[4]) >= 2 then return { 'wait' } end
if t[2] ~= ARGV[2] and t[2] ~= ARGV[3] and t[2] ~= ARGV[4] then return { 'superseded' } end
local now = now_ms()
redis.call('HSET', key, 'token', ARGV[2])
lease(turn_id, now)
return { 'ok', t[3], t[4], t[5], t[6] or '', tonumber(t[7]) < now and '1' or '', t[8] or '' }
