-- What every script of a pool shares: where things are, and the arithmetic of core/windows.py.
-- scripts.py puts this file in front of each of the others; docs/redis.md lists the records.
--
-- KEYS[1] is `keyrot:{pool}`. All other names are made from it, so that they carry its hash tag and
-- live in one slot; which ones they are follows from the model's bucket, which is known only here.
--
-- Times are epoch seconds of this server's clock (ADR 0008). A test may give its own in ARGV[1];
-- the library itself always leaves that empty.

local GUARD_S, DAY_S, POLL_S = 1, 86400, 0.1
local FOR_EVER_S = 30 * DAY_S -- how long a record without an end of its own is kept
local MOST_RESTS = 64 -- cooldowns kept for one key, project or account

-- A quota record is a JSON array with these places; the last four only where a limit was told.
local MINUTE, REQUESTS, REQUESTS_NEXT, TOKENS, TOKENS_NEXT = 1, 2, 3, 4, 5
local DAY_END, DAY_REQUESTS = 6, 7
local TOLD_UNTIL, TOLD_RPM, TOLD_TPM, TOLD_RPD = 8, 9, 10, 11
-- A health record is a JSON array with these; the last is absent where nothing has failed.
local LAST_USED, SUCCESSES, ERRORS, REVIVED, LAST_ERROR = 1, 2, 3, 4, 5

local function at(name)
  return KEYS[1] .. ':' .. name
end

local function quota_at(project, bucket) -- the length in front keeps a:b and c apart from a and b:c
  return at('q:' .. #project .. ':' .. project .. ':' .. bucket)
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
  return text and cjson.decode(text) or { -1, 0, 0, 0, 0, 0, 0 }
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

-- Open the windows of now; true where now is within the guard of a minute's edge.
local function roll(q, now, midnights)
  local first = math.floor((now - GUARD_S) / 60)
  if first > q[MINUTE] then
    local kept = first == q[MINUTE] + 1
    q[REQUESTS], q[REQUESTS_NEXT] = kept and q[REQUESTS_NEXT] or 0, 0
    q[TOKENS], q[TOKENS_NEXT] = kept and q[TOKENS_NEXT] or 0, 0
    q[MINUTE] = first
  end
  if now >= q[DAY_END] then
    q[DAY_END], q[DAY_REQUESTS] = next_midnight(now, midnights), 0
  end
  if q[TOLD_UNTIL] and now >= q[TOLD_UNTIL] then
    q[TOLD_UNTIL] = nil
  end
  return math.floor((now + GUARD_S) / 60) > q[MINUTE]
end

local function keep_quota(name, q, now)
  local text = string.format('%d,%d,%d,%d,%d,%d,%d', unpack(q, MINUTE, DAY_REQUESTS))
  if q[TOLD_UNTIL] then
    text = text .. string.format(',%.17g,%d,%d,%d', unpack(q, TOLD_UNTIL, TOLD_RPD))
  end
  -- A request in the day's last second may count in the minute after it as well.
  local ends = math.max(q[DAY_END] + 60 + GUARD_S, q[TOLD_UNTIL] or 0)
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
-- One record for a key (c:k:), a project (c:p:) and a billing account (c:b:) each, of all that rest
-- of it: a JSON object from the scope to {until, strikes, failure, waitable, probe, probe_until}.

local function rest_names(billing, project, key_id)
  return at('c:b:' .. billing), at('c:p:' .. project), at('c:k:' .. key_id)
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

local function rests(text)
  return text and cjson.decode(text) or {}
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
  return text and cjson.decode(text) or { 0, 0, 0, 0 }
end

-- With the text of when it was last used, where there is one.
local function keep_health(name, h, used)
  used = used or exact(h[LAST_USED])
  local text = string.format('[%s,%d,%d,%d', used, unpack(h, SUCCESSES, REVIVED))
  if h[LAST_ERROR] then
    text = text .. ',' .. cjson.encode(h[LAST_ERROR])
  end
  keep(name, text .. ']', FOR_EVER_S)
end
