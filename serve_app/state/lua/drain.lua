-- Look whether a node is to leave, and while it is, say how much a replica still has in hand.
-- ARGV: 1 node, 2 replica, 3 turns or connections that it has in hand
-- Returns the milliseconds that are left to finish what is live there (below 0: none), or nil: the node stays.
local drain = redis.call('GET', K.node .. ARGV[1] .. ':drain')
if not drain then return nil end
local now = now_ms()
redis.call('HSET', K.node .. ARGV[1] .. ':left', ARGV[2], cjson.encode({ in_hand = tonumber(ARGV[3]), at_ms = now }))
redis.call('EXPIRE', K.node .. ARGV[1] .. ':left', DRAIN_SECONDS)
return ms(cjson.decode(drain).until_ms - now)
