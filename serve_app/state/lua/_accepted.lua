-- Telling that a user message is kept: the event for the client's devices, and the notice on the mission's channel.
local function acceptance(turn_id, client_id, conversation_id, seq, personality, message)
  return {
    event = cjson.encode({ type = 'accepted', turn_id = turn_id, conversation_id = conversation_id, message_seq = seq,
      personality = personality, content = message.content, node = message.node }),
    notice = cjson.encode({ type = 'chat_message', conversation_id = conversation_id, client_id = client_id,
      node = message.node, role = 'user', turn_id = turn_id, seq = seq, personality = personality,
      timestamp = message.timestamp }),
  }
end

-- With replicas, `begin` tells nothing and leaves the field `untold`: whoever acts on the turn first does so after it was
-- waited for, and tells it (law 8). Give that field; returns the acceptance, once. The caller publishes it, last.
local function take_untold(untold, turn_id)
  if not untold then return nil end
  local key = K.turn .. turn_id
  redis.call('HDEL', key, 'untold')
  local t = redis.call('HMGET', key, 'client_id', 'conversation_id', 'message_seq', 'personality')
  local raw = redis.call('GET', K.message .. t[2] .. ':' .. t[3])
  return raw and acceptance(turn_id, t[1], t[2], tonumber(t[3]), t[4], cjson.decode(raw)) or nil
end

-- Publish the notice of an acceptance, if there is one, and put its event before `events`, which the caller tells.
local function tell_acceptance(accepted, events)
  if not accepted then return end
  redis.call('PUBLISH', K.chat_channel, accepted.notice)
  table.insert(events, 1, accepted.event)
end
