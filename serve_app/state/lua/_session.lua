-- Create or prolong a client's session. Returns the decoded session and whether it is new. The caller publishes last.
local function touch_session(client_id, node, timestamp, now, connected)
  local raw, s, new = redis.call('GET', K.session .. client_id), nil, false
  if raw then
    s = cjson.decode(raw)
    s.node = node
    if connected then s.connected_at = timestamp end
  else
    new = true
    s = { client_id = client_id, user_id = client_id, node = node, created_at = timestamp, connected_at = timestamp,
      status = 'active', conversations = {} }
  end
  return s, new
end

local function keep_session(s, now)
  redis.call('SET', K.session .. s.client_id, cjson.encode(s), 'EX', SESSION_SECONDS)
  redis.call('ZADD', K.sessions, ms(now + SESSION_SECONDS * 1000), s.client_id)
end

local function tell_session(s)
  redis.call('PUBLISH', K.session_channel, cjson.encode({ type = 'session_created', user_id = s.user_id,
    client_id = s.client_id, node = s.node, created_at = s.created_at }))
end

-- A free conversation id of the mission's form, conv_{client_id}_{unix}, with -2, -3 … where taken.
local function free_conversation(client_id, unix)
  local id, n = 'conv_' .. client_id .. '_' .. unix, 1
  local base = id
  while redis.call('EXISTS', K.conversation .. id) == 1 do
    n = n + 1
    id = base .. '-' .. n
  end
  return id
end

local function keep_conversation(id, client_id, personality, title, timestamp, now)
  redis.call('HSET', K.conversation .. id, 'owner', client_id, 'personality', personality, 'title', title,
    'created', timestamp, 'updated', timestamp, 'last_seq', 0)
  redis.call('ZADD', K.conversations .. client_id, ms(now), id)
end
