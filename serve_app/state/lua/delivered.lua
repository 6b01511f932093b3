-- Note that whoever asked was given the end of the turn. ARGV: 1 turn_id. Returns {'ok'}. Idempotent.
redis.call('HDEL', K.turn .. ARGV[1], 'undelivered')
return { 'ok' }
