-- A node says that it is there. ARGV: 1 node, 2 its record (JSON)
-- Kept for NODE_SECONDS, in place of its former record.
local now = now_ms()
redis.call('SET', K.node .. ARGV[1], ARGV[2], 'EX', NODE_SECONDS)
redis.call('ZADD', K.nodes, ms(now + NODE_SECONDS * 1000), ARGV[1])
return 'ok'
