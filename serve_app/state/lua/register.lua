-- Somebody says that it is there. ARGV: 1 'node' or 'replica', 2 its name, 3 its record (JSON), 4 for how many seconds; 0: it leaves
-- Takes the place of its former record.
local index, key, seconds = K[ARGV[1] .. 's'], K[ARGV[1]] .. ARGV[2], tonumber(ARGV[4])
if seconds == 0 then
  redis.call('DEL', key)
  redis.call('ZREM', index, ARGV[2])
else
  redis.call('SET', key, ARGV[3], 'EX', seconds)
  redis.call('ZADD', index, ms(now_ms() + seconds * 1000), ARGV[2])
end
return 'ok'
