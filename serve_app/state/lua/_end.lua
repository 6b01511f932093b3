-- End a turn (law 1). `t`: the turn's client_id, conversation_id, idempotency_key, node, personality and untold; `ended`:
-- status, event and reply (JSON; '' for none), timestamp, and by whom: the token; `fresh`: pieces not told yet.
-- Returns the seq of the reply ('0' for none).
local function end_turn(turn_id, t, ended, fresh)
  local key, conversation, now, reply_seq = K.turn .. turn_id, K.conversation .. t.conversation_id, now_ms(), '0'
  local alive = redis.call('EXISTS', conversation) == 1 and not redis.call('HGET', conversation, 'deleted')
  if alive then
    if ended.reply ~= '' then
      reply_seq = tostring(redis.call('HINCRBY', conversation, 'last_seq', 1))
      redis.call('SET', K.message .. t.conversation_id .. ':' .. reply_seq, ended.reply)
    end
    redis.call('HSET', conversation, 'updated', ended.timestamp)
    if redis.call('HGET', conversation, 'open_turn') == turn_id then redis.call('HDEL', conversation, 'open_turn') end
    redis.call('ZADD', K.conversations .. t.client_id, ms(now), t.conversation_id)
  end
  redis.call('HSET', key, 'state', ended.status, 'token', '', 'ended_by', ended.by, 'end', ended.event, 'reply_seq', reply_seq)
  redis.call('HDEL', key, 'pinned', 'options', 'failure')
  redis.call('ZREM', K.open, turn_id)
  redis.call('ZREMRANGEBYRANK', K.client_turns .. t.client_id, 0, -101)
  redis.call('EXPIRE', K.client_turns .. t.client_id, TOMBSTONE_SECONDS)
  redis.call('EXPIRE', key, TOMBSTONE_SECONDS)
  redis.call('EXPIRE', log_key(turn_id), LOG_SECONDS)
  if t.idempotency_key ~= '' then
    redis.call('EXPIRE', K.idempotency .. t.client_id .. ':' .. t.idempotency_key, TOMBSTONE_SECONDS)
  end
  if redis.call('EXPIRE', K.session .. t.client_id, SESSION_SECONDS) == 1 then
    redis.call('ZADD', K.sessions, ms(now + SESSION_SECONDS * 1000), t.client_id)
  end
  local accepted = take_untold(t.untold, turn_id)

  fresh[#fresh + 1] = ended.event
  tell_acceptance(accepted, fresh)
  if alive and ended.reply ~= '' then
    redis.call('PUBLISH', K.chat_channel, cjson.encode({ type = 'chat_message', conversation_id = t.conversation_id,
      client_id = t.client_id, node = t.node, role = 'assistant', turn_id = turn_id, seq = tonumber(reply_seq),
      personality = t.personality, status = ended.status, timestamp = ended.timestamp }))
  end
  tell(t.client_id, fresh)
  return reply_seq
end
