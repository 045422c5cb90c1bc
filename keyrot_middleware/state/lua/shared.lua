-- What every script of a pool shares: where things are, and the arithmetic of core/windows.py.
-- scripts.py puts this file in front of each of the others; docs/redis.md lists the records.
--
-- KEYS[1] is `keyrot:v1:{pool}`. All other names are made from it, so that they carry its hash tag and
-- live in one slot; which ones they are follows from the model's bucket, which is known only here.
--
-- Times are epoch seconds of this server's clock (ADR 0008). A test may give its own in ARGV[1];
-- the library itself always leaves that empty.

local GUARD_S, MINUTE_S, DAY_S, POLL_S = 1, 60, 86400, 0.1
local SHORT_DAY_S, HOUR_S = 23 * 3600, 3600
local AHEAD_S, CELL_S, PIECES, SLACK_S, LATER_S = 60, 2, 8, 2, 0.001 -- of core/windows.py
local PROBE_S = 2 -- so long a probe goes alone; after that one more may go, which is then the probe
local FOR_EVER_S = 30 * DAY_S -- how long a record without an end of its own is kept
local MOST_RESTS = 64 -- cooldowns kept for one key, project or account

-- A quota record is a JSON array with these places. Those from LEARNED_UNTIL on are there only where a
-- limit was reported, or a pace is kept; those from PACE_UNTIL on only where a pace is.
local MINUTE, REQUESTS, REQUESTS_NEXT, TOKENS, TOKENS_NEXT = 1, 2, 3, 4, 5
local DAY_END, DAY_REQUESTS = 6, 7
local BEGAN, LAST, BEFORE_BEGAN, BEFORE_LAST, BEFORE_REQUESTS, BEFORE_TOKENS = 8, 9, 10, 11, 12, 13
local LEARNED_UNTIL, LEARNED_RPM, LEARNED_TPM, LEARNED_RPD = 14, 15, 16, 17
local PACE_UNTIL, KIND, PACE = 18, 19, 20
-- The pace of a SLIDING window: when sent, requests, tokens; and so on. That of a BUCKET: these.
local QUOTA_FORMAT = '%d' .. string.rep(',%d', BEFORE_TOKENS - 1)
local SLIDING, BUCKET, NO_MARK, BUCKET_MARK = 1, 2, -1, -2
local AT, LEFT_REQUESTS, LEFT_TOKENS, PER_MINUTE, TOKENS_PER_MINUTE = 1, 2, 3, 4, 5
-- A health record is a JSON array with these; the last is absent where nothing has failed. VALUE is
-- the fingerprint of the value that the key was used with last.
local LAST_USED, SUCCESSES, ERRORS, VALUE, LAST_ERROR = 1, 2, 3, 4, 5

local function at(name)
  return KEYS[1] .. ':' .. name
end

local function quota_at(project, bucket) -- the length in front keeps a:b and c apart from a and b:c
  return at('quota:' .. #project .. ':' .. project .. ':' .. bucket)
end

-- The time, and the same as text: to write a number with all its digits takes as long as a SET.
local function clock(given)
  local text = given
  if given == '' then
    local time = redis.call('TIME')
    text = string.format('%s.%06d', time[1], time[2])
  end
  return tonumber(text), text
end

local function exact(seconds)
  return string.format('%.17g', seconds)
end

local function seconds(text)
  return text == 'inf' and math.huge or tonumber(text)
end

-- SET is refused when memory has run out, so the first write of a script is one wherever it can be.
local function keep(name, text, for_s)
  redis.call('SET', name, text, 'PX', math.ceil(math.max(for_s, 1) * 1000))
end

-- Quotas ---------------------------------------------------------------------------------------

local function quota(text)
  local q = text and cjson.decode(text) or {}
  if #q < BEFORE_TOKENS then -- there is none, or it is of an older version
    q = { -1, 0, 0, 0, 0, 0, 0, -1, -1, -1, -1, 0, 0 }
  elseif q[LEARNED_UNTIL] == 0 then
    q[LEARNED_UNTIL] = nil
  end
  return q
end

local function full(used, cost, most)
  return used + cost > most and (used > 0 or most <= 0)
end

local function next_midnight(now, text)
  local midnights = cjson.decode(text)
  for _, moment in ipairs(midnights) do
    if moment > now then
      return moment
    end
  end
  local last = midnights[#midnights] -- the asking host's clock is days behind this one
  return last + (math.floor((now - last) / DAY_S) + 1) * DAY_S
end

-- Paces: the models other than the clock's minute (core/windows.py).

local function begin_pace(q, kind, pace, now)
  q[KIND], q[PACE], q[PACE_UNTIL] = kind, pace, now + DAY_S
end

-- What is left of what was used, as of now.
local function left(pace, place, now)
  local used, per_minute = pace[place], pace[place + 2]
  local back = math.max(now - pace[AT], 0) * (per_minute > 0 and per_minute or used) / MINUTE_S
  return math.max(used - back, 0)
end

-- The requests and tokens that count now, after roll.
local function in_use(q, now)
  local pace = q[PACE]
  if q[KIND] == SLIDING then
    local requests, tokens = 0, 0
    for i = 1, #pace, 3 do
      requests, tokens = requests + pace[i + 1], tokens + pace[i + 2]
    end
    return requests, tokens
  elseif q[KIND] == BUCKET then
    local requests, tokens = left(pace, LEFT_REQUESTS, now), left(pace, LEFT_TOKENS, now)
    return math.ceil(requests - 1e-6), math.ceil(tokens - 1e-6)
  end
  return q[REQUESTS], q[TOKENS]
end

-- Count as of now: forget what has left a window, and what lies in the future.
local function open_pace(q, now)
  local pace = q[PACE]
  if q[KIND] == SLIDING then
    local kept = {}
    for i = 1, #pace, 3 do
      if now - MINUTE_S - GUARD_S < pace[i] and pace[i] <= now + AHEAD_S then
        local n = #kept
        kept[n + 1], kept[n + 2], kept[n + 3] = pace[i], pace[i + 1], pace[i + 2]
      end
    end
    q[PACE] = kept
  elseif pace[AT] > now + AHEAD_S then
    pace[AT], pace[LEFT_REQUESTS], pace[LEFT_TOKENS] = now, 0, 0
  end
end

local function lends_at_once(limit)
  return limit - limit * GUARD_S / MINUTE_S
end

-- Until when there is no room for a cost; place: 1 for requests, 2 for tokens.
local function pace_full(q, now, place, cost, limit)
  local pace = q[PACE]
  if q[KIND] == SLIDING then
    local requests, tokens = in_use(q, now)
    local used = place == 1 and requests or tokens
    if not full(used, cost, limit) then
      return nil
    end
    for i = 1, #pace, 3 do
      used = used - pace[i + place]
      if not full(used, cost, limit) then
        return pace[i] + MINUTE_S + GUARD_S
      end
    end
    return now + MINUTE_S + GUARD_S -- of a limit of 0 nothing ever comes free
  end
  local used = left(pace, place + 1, now)
  if limit <= 0 then
    return used + cost > 0 and now + MINUTE_S or nil
  end
  local over = used + cost - lends_at_once(limit)
  if over > 0 and used > 0 then
    return math.max(now, pace[AT]) + math.min(over, used) * MINUTE_S / limit + LATER_S
  end
end

local function book_pace(q, now, requests, tokens, rpm, tpm)
  local pace = q[PACE]
  if q[KIND] == BUCKET then
    local left_requests, left_tokens = left(pace, LEFT_REQUESTS, now), left(pace, LEFT_TOKENS, now)
    pace[LEFT_REQUESTS], pace[LEFT_TOKENS] = left_requests + requests, left_tokens + tokens
    pace[AT] = now
    pace[PER_MINUTE], pace[TOKENS_PER_MINUTE] = rpm or pace[4], tpm or pace[5]
    return BUCKET_MARK
  elseif requests == 0 and tokens == 0 then
    return NO_MARK
  end
  local n, sent = #pace, now
  if n > 0 and pace[n - 2] > sent then
    sent = pace[n - 2]
  end
  if n > 0 and math.floor(pace[n - 2] / CELL_S) == math.floor(sent / CELL_S) then
    pace[n - 2], pace[n - 1], pace[n] = sent, pace[n - 1] + requests, pace[n] + tokens
  else
    pace[n + 1], pace[n + 2], pace[n + 3] = sent, requests, tokens
  end
  return math.floor(sent / CELL_S)
end

local function correct_pace(q, mark, requests, tokens)
  local pace = q[PACE]
  if q[KIND] == BUCKET and mark == BUCKET_MARK then
    pace[LEFT_REQUESTS] = math.max(pace[LEFT_REQUESTS] + requests, 0)
    pace[LEFT_TOKENS] = math.max(pace[LEFT_TOKENS] + tokens, 0)
  elseif q[KIND] == SLIDING then
    for i = 1, #pace, 3 do
      if math.floor(pace[i] / CELL_S) == mark then
        pace[i + 1] = math.max(pace[i + 1] + requests, 0)
        pace[i + 2] = math.max(pace[i + 2] + tokens, 0)
        return
      end
    end
  end
end

-- Open the minute of now, and what is kept beside it; true where now is within the guard of an edge.
local function open(q, now)
  local first = math.floor((now - GUARD_S) / 60)
  if first > q[MINUTE] or first < q[MINUTE] - 1 then
    local kept = first == q[MINUTE] + 1
    q[BEFORE_BEGAN], q[BEFORE_LAST] = kept and q[BEGAN] or -1, kept and q[LAST] or -1
    q[BEFORE_REQUESTS] = kept and q[REQUESTS] - q[REQUESTS_NEXT] or 0
    q[BEFORE_TOKENS] = kept and q[TOKENS] - q[TOKENS_NEXT] or 0
    q[REQUESTS], q[REQUESTS_NEXT] = kept and q[REQUESTS_NEXT] or 0, 0
    q[TOKENS], q[TOKENS_NEXT] = kept and q[TOKENS_NEXT] or 0, 0
    local begun = (q[REQUESTS] ~= 0 or q[TOKENS] ~= 0) and 0 or -1
    q[BEGAN], q[LAST], q[MINUTE] = begun, begun, first
  end
  if q[KIND] then
    q[PACE_UNTIL] = math.min(q[PACE_UNTIL], now + DAY_S)
    if now >= q[PACE_UNTIL] then
      q[PACE_UNTIL], q[KIND], q[PACE] = nil, nil, nil
    else
      open_pace(q, now)
    end
  end
  return math.floor((now + GUARD_S) / 60) > q[MINUTE]
end

-- Open the windows of now; what lies further ahead than it can comes of a clock that stepped back.
local function roll(q, now, midnights)
  local edge = open(q, now)
  if now >= q[DAY_END] or q[DAY_END] - now > SHORT_DAY_S then
    local midnight = next_midnight(now, midnights)
    if now >= q[DAY_END] or q[DAY_END] - midnight > SHORT_DAY_S - HOUR_S then
      q[DAY_END], q[DAY_REQUESTS] = midnight, 0
    end
  end
  if q[LEARNED_UNTIL] then
    q[LEARNED_UNTIL] = math.min(q[LEARNED_UNTIL], now + DAY_S)
    if now >= q[LEARNED_UNTIL] then
      q[LEARNED_UNTIL] = nil
    end
  end
  return edge
end

-- Count a request in all windows; give the mark by which its pace finds it again.
local function book(q, now, edge, requests, tokens, rpm, tpm)
  q[REQUESTS], q[TOKENS] = q[REQUESTS] + requests, q[TOKENS] + tokens
  if edge then
    q[REQUESTS_NEXT], q[TOKENS_NEXT] = q[REQUESTS_NEXT] + requests, q[TOKENS_NEXT] + tokens
  end
  q[LAST] = math.floor(now) - q[MINUTE] * 60
  if q[BEGAN] < 0 then
    q[BEGAN] = q[LAST]
  end
  return q[KIND] and book_pace(q, now, requests, tokens, rpm, tpm) or NO_MARK
end

local function keep_quota(name, q, now)
  local text = string.format(QUOTA_FORMAT, unpack(q, MINUTE, BEFORE_TOKENS))
  -- A request in the day's last second may count in the minute after it as well.
  local ends = math.max(q[DAY_END] + 60 + GUARD_S, q[LEARNED_UNTIL] or 0, q[PACE_UNTIL] or 0)
  if q[LEARNED_UNTIL] then
    text = text .. string.format(',%.17g,%d,%d,%d', unpack(q, LEARNED_UNTIL, LEARNED_RPD))
  elseif q[KIND] then
    text = text .. ',0,-1,-1,-1'
  end
  if q[KIND] then
    local pace = {}
    for i, number in ipairs(q[PACE]) do
      pace[i] = exact(number)
    end
    local numbers = table.concat(pace, ',')
    text = text .. string.format(',%s,%d,[%s]', exact(q[PACE_UNTIL]), q[KIND], numbers)
  end
  keep(name, '[' .. text .. ']', ends - now)
end

-- Which buckets a pool uses, for snapshots only; no record of one lives for two days.
local function list_bucket(bucket, now)
  local name = at('buckets')
  redis.call('ZREMRANGEBYSCORE', name, '-inf', exact(now))
  redis.call('ZADD', name, exact(now + 2 * DAY_S), bucket)
  redis.call('EXPIRE', name, 2 * DAY_S)
end

-- Cooldowns --------------------------------------------------------------------------------------
-- One record for a key (cooldown:key:), a project (cooldown:project:) and a billing account
-- (cooldown:billing:) each, of all its cooldowns: a JSON object from the scope to {until, length,
-- strikes, failure, waitable, probe, probe_until}.

local function rest_names(billing, project, key_id)
  return at('cooldown:billing:' .. billing), at('cooldown:project:' .. project), at('cooldown:key:' .. key_id)
end

-- The scopes that keep a key from serving, the widest first: whose record, and the place in it.
local function scopes(bucket, verb)
  local all = { { 1, 'billing' }, { 2, 'project' }, { 3, 'key' } }
  all[4], all[5] = { 2, 'project_model:' .. bucket }, { 3, 'key_model:' .. bucket }
  all[6] = { 3, 'key_verb:' .. verb }
  if verb == 'cachedContents' then
    all[7] = { 2, 'project_cache' }
  end
  return all
end

local function read_cooldowns(text)
  return text and cjson.decode(text) or {}
end

-- Does it lie in the future, since the clock has stepped back after it was recorded?
local function is_ahead(rest, now)
  return seconds(rest['until']) > now + seconds(rest.length or 'inf') + AHEAD_S
end

local function keep_rests(name, record, now)
  local count, soonest, last = 0, nil, now
  for scope, rest in pairs(record) do
    local ends = seconds(rest['until'])
    count, last = count + 1, math.max(last, ends)
    if not soonest or ends < seconds(record[soonest]['until']) then
      soonest = scope
    end
  end
  if count > MOST_RESTS then
    record[soonest] = nil
  end
  if count == 0 then
    redis.call('DEL', name)
  else
    keep(name, cjson.encode(record), math.min(last - now + DAY_S, FOR_EVER_S))
  end
end

-- Health -----------------------------------------------------------------------------------------

local function health(text)
  return text and cjson.decode(text) or { 0, 0, 0, '' }
end

-- With the text of when it was last used, and the name of the record of its cooldowns, which ends
-- with the fingerprint of its value, where it is used now.
local function keep_health(name, h, used, record)
  used = used or exact(h[LAST_USED])
  h[VALUE] = record and string.match(record, '@(%x+)$') or record and '' or h[VALUE]
  local text = string.format('[%s,%d,%d,"%s"', used, unpack(h, SUCCESSES, VALUE))
  if h[LAST_ERROR] then
    text = text .. ',' .. cjson.encode(h[LAST_ERROR])
  end
  keep(name, text .. ']', FOR_EVER_S)
end
