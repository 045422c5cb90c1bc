-- Book what became of a lease: true tokens, concurrency, cooldown, learned limits, owners, counts.
--
-- ARGV:  1 clock ('' but in tests)           2 the asking host's clock, for the times of a verdict
--        3 key  4 project  5 record of the key  6 bucket  7 verb  8 model as asked for
--        9 kind (success, failure, abandoned, unsent, serving)   10 true input tokens, '' where unknown
--       11 lease id, '' where nothing was booked here: a failure that was reported by hand
--       12 granted at  13 minute  14 edge  15 day's end  16 mark  17 held
--       18 requests reserved  19 tokens reserved
--       20 verdict (JSON), '' where there is none
--       21 and on: name's digest, seconds to keep it: who owns what
--       the last five: names of records, as acquire.lua has them of a candidate
-- Gives until when the scope of the failure is cooling down, by the asking host's clock; nil for nothing.

local given, asked_at = ARGV[1], ARGV[2]
local key, project, record = ARGV[3], ARGV[4], ARGV[5]
local bucket, verb, model = ARGV[6], ARGV[7], ARGV[8]
local kind, used, lease = ARGV[9], tonumber(ARGV[10]), ARGV[11]
local granted, minute, edge = tonumber(ARGV[12]), tonumber(ARGV[13]), ARGV[14] == '1'
local day_end, mark = tonumber(ARGV[15]), tonumber(ARGV[16])
local held = ARGV[17] == '1'
local requests, tokens = tonumber(ARGV[18]), tonumber(ARGV[19])
local verdict = ARGV[20] ~= '' and cjson.decode(ARGV[20]) or nil

-- Read all there is to read ----------------------------------------------------------------------

-- Without a verdict times only say how long records are kept: then that of the grant will do.
local now = verdict and clock(given) or granted
local STORED, NAMES = 21, #ARGV - 5
local names = { unpack(ARGV, NAMES + 1) }
local quota_name, health_name = names[4], names[5]
local texts = redis.call('MGET', unpack(names))
local cool = { read_cooldowns(texts[1]), read_cooldowns(texts[2]), read_cooldowns(texts[3]) }
local h, touched = health(texts[5]), {}
local q -- read where it is needed
local function known()
  q = q or quota(texts[4])
  return q
end
local scoped = (texts[1] or texts[2] or texts[3]) and scopes(bucket, verb) or {}
local told_bucket = verdict and verdict.bucket ~= '' and verdict.bucket or bucket

-- What was booked ---------------------------------------------------------------------------------

-- Add to the windows of the booking, as far as they still count; never below nothing, which is
-- what is left of a booking after this server lost its memory.
local function correct(more_requests, more_tokens)
  known()
  local function add(place, more)
    q[place] = math.max(q[place] + more, 0)
  end
  if minute == q[MINUTE] then
    add(REQUESTS, more_requests)
    add(TOKENS, more_tokens)
    if edge then
      add(REQUESTS_NEXT, more_requests)
      add(TOKENS_NEXT, more_tokens)
    end
  elseif edge and minute + 1 == q[MINUTE] then
    add(REQUESTS, more_requests)
    add(TOKENS, more_tokens)
  elseif minute + 1 == q[MINUTE] and q[BEFORE_BEGAN] >= 0 then
    add(BEFORE_REQUESTS, more_requests)
    add(BEFORE_TOKENS, more_tokens)
  end
  if day_end == q[DAY_END] then
    add(DAY_REQUESTS, more_requests)
  end
  if q[KIND] and mark ~= NO_MARK then
    correct_pace(q, mark, more_requests, more_tokens)
  end
end

local function give_back()
  if texts[4] and kind == 'unsent' then
    correct(-requests, -tokens)
    keep_quota(quota_name, q, now)
  elseif texts[4] and used and used ~= tokens then
    correct(0, used - tokens)
    keep_quota(quota_name, q, now)
  end
  if held then
    redis.call('ZREM', at('lease:' .. record), lease)
  end
  for _, scope in ipairs(scoped) do
    local rest = cool[scope[1]][scope[2]]
    if rest and rest.probe == lease then
      rest.probe, rest.probe_until, touched[scope[1]] = '', '0', true
    end
  end
end

-- Cooldowns --------------------------------------------------------------------------------------

-- A success ends the exponential cooldown, unless it began before that was over.
local function forgive()
  local moment = #scoped > 0 and clock(given)
  for _, scope in ipairs(scoped) do
    local rest = cool[scope[1]][scope[2]]
    if rest and (seconds(rest['until']) <= granted or is_ahead(rest, moment)) then
      cool[scope[1]][scope[2]], touched[scope[1]] = nil, true
    end
  end
end

-- A learned limit that a request which was served exceeds by itself is wrong, or was raised.
local function served()
  if not known()[LEARNED_UNTIL] then
    return
  end
  local sizes, wrong = { [LEARNED_RPM] = requests, [LEARNED_TPM] = used or 0, [LEARNED_RPD] = requests }, false
  for place, size in pairs(sizes) do
    if q[place] >= 0 and size > q[place] then
      q[place], wrong = -1, true
    end
  end
  if wrong then
    if q[LEARNED_RPM] < 0 and q[LEARNED_TPM] < 0 and q[LEARNED_RPD] < 0 then
      q[LEARNED_UNTIL] = nil
    end
    keep_quota(quota_name, q, now)
  end
end

local function learn()
  if verdict.rpm < 0 and verdict.tpm < 0 and verdict.rpd < 0 then
    return
  end
  local learned_name, learned = quota_name, nil
  if told_bucket == bucket then
    learned = known()
  else
    learned_name = quota_at(project, told_bucket)
    learned = quota(redis.call('GET', learned_name))
  end
  local kept = learned[LEARNED_UNTIL] and now < learned[LEARNED_UNTIL]
  local function set(place, value)
    learned[place] = value >= 0 and value or kept and learned[place] or -1
  end
  set(LEARNED_RPM, verdict.rpm)
  set(LEARNED_TPM, verdict.tpm)
  set(LEARNED_RPD, verdict.rpd)
  learned[LEARNED_UNTIL] = now + DAY_S
  keep_quota(learned_name, learned, now)
  list_bucket(told_bucket, now)
end

-- By what model to count (Quota.judge, ADR 0020) -------------------------------------------------

-- Is the end of the clock's minute named, counted from any moment between request and answer?
local function names_minute(delay)
  local first, last = granted + delay - SLACK_S, now + delay + SLACK_S
  for skew = -GUARD_S, GUARD_S, 2 * GUARD_S do
    local ends = (math.floor((granted + skew) / 60) + 1) * 60
    if first <= ends and ends <= last then
      return true
    end
  end
end

-- Put sums of a part of a minute into a few records between its begin and its end.
local function spread(into, minute, began, last, all_requests, all_tokens)
  if began < 0 or (all_requests <= 0 and all_tokens <= 0) then
    return
  end
  local pieces = math.min(PIECES, math.max(all_requests, 1), math.floor((last - began) / CELL_S) + 1)
  pieces = math.max(1, pieces)
  local function part(of, i)
    return math.floor(of * (i + 1) / pieces) - math.floor(of * i / pieces)
  end
  for i = 0, pieces - 1 do
    local n = #into
    into[n + 1] = minute * 60 + began + math.floor((last - began) * (i + 1) / pieces) + 1
    into[n + 2], into[n + 3] = part(all_requests, i), part(all_tokens, i)
  end
end

local function slide()
  local pace = {}
  local before_requests, before_tokens = q[BEFORE_REQUESTS], q[BEFORE_TOKENS]
  spread(pace, q[MINUTE] - 1, q[BEFORE_BEGAN], q[BEFORE_LAST], before_requests, before_tokens)
  spread(pace, q[MINUTE], q[BEGAN], q[LAST], q[REQUESTS], q[TOKENS])
  begin_pace(q, SLIDING, pace, now)
end

-- When the oldest request was booked that a window of 60 s may still count.
local function oldest()
  local before = (q[MINUTE] - 1) * 60
  if q[BEFORE_LAST] >= 0 and before + q[BEFORE_LAST] > now - MINUTE_S then
    return math.max(before + q[BEFORE_BEGAN], now - MINUTE_S)
  end
  return q[BEGAN] < 0 and now or q[MINUTE] * 60 + q[BEGAN]
end

-- Was more let through within 60 s than a sliding window of it would hold?
local function beyond()
  if q[BEFORE_BEGAN] < 0 or (q[MINUTE] - 1) * 60 + q[BEFORE_BEGAN] <= now - 59 then
    return false
  end
  local function one(limit, before, passed)
    return limit >= 0 and before + passed > limit and 2 * passed >= limit
  end
  return one(verdict.rpm, q[BEFORE_REQUESTS], q[REQUESTS] - requests)
    or one(verdict.tpm, q[BEFORE_TOKENS], q[TOKENS] - tokens)
end

-- Was so much sent within 60 s, by our count, that a limit is used up?
local function is_our_doing()
  local recent = q[BEFORE_LAST] >= 0 and (q[MINUTE] - 1) * 60 + q[BEFORE_LAST] > now - 60
  local sent_requests = q[REQUESTS] + (recent and q[BEFORE_REQUESTS] or 0)
  local sent_tokens = q[TOKENS] + (recent and q[BEFORE_TOKENS] or 0)
  return (verdict.rpm >= 0 and sent_requests >= verdict.rpm)
    or (verdict.tpm >= 0 and 2 * sent_tokens >= verdict.tpm)
end

-- Make a bucket that has room for the refused request after the delay.
local function fill_bucket(delay)
  local left_requests, left_tokens = in_use(q, now)
  delay = math.max(delay - LATER_S, 0)
  local function whole(limit, cost)
    return math.max(lends_at_once(limit) - cost, 0) + delay * limit / MINUTE_S
  end
  if verdict.rpm >= 0 then
    left_requests = whole(verdict.rpm, requests)
  end
  if verdict.tpm >= 0 then
    left_tokens = whole(verdict.tpm, tokens)
  end
  local rpm, tpm = q[LEARNED_RPM], q[LEARNED_TPM]
  rpm, tpm = rpm and math.max(rpm, 0) or 0, tpm and math.max(tpm, 0) or 0
  begin_pace(q, BUCKET, { now, left_requests, left_tokens, rpm, tpm }, now)
end

local function had_room()
  return minute == q[MINUTE]
    and ((verdict.rpm >= 0 and q[REQUESTS] <= verdict.rpm)
      or (verdict.tpm >= 0 and q[TOKENS] <= verdict.tpm))
end

local function comes_back_evenly(delay)
  local function one(limit, cost)
    return limit >= 0 and delay <= cost * MINUTE_S / limit + SLACK_S
  end
  return one(verdict.rpm, requests) or one(verdict.tpm, 2 * tokens) -- of tokens an estimate
end

-- How long the sliding window that is kept would have the refused request wait.
local function ahead_of_window()
  local learned = q[LEARNED_UNTIL] and now < q[LEARNED_UNTIL]
  local ends = learned and q[LEARNED_RPM] >= 0 and pace_full(q, now, 1, requests, q[LEARNED_RPM])
  ends = ends or (learned and q[LEARNED_TPM] >= 0 and pace_full(q, now, 2, tokens, q[LEARNED_TPM]))
  return ends and ends - now or 0
end

local function judge()
  open(known(), now)
  local delay = verdict.retry_delay_s
  if delay < 0 then
    if not q[KIND] and had_room() then
      slide()
    end
    return
  elseif delay > MINUTE_S + SLACK_S then
    return
  end
  -- Others may have used up the clock's minute; but not where our own requests of the last 60 s
  -- say the same of a sliding window, while the minute had room.
  local ours = not q[KIND] and had_room() and is_our_doing()
  if names_minute(delay) and not ours then
    return
  end
  local even = comes_back_evenly(delay)
  if not q[KIND] then
    local short = 2 * (delay + SLACK_S) < oldest() + MINUTE_S - now or beyond()
    if even and short and is_our_doing() then
      fill_bucket(delay)
    else
      slide()
    end
  elseif q[KIND] == SLIDING then
    if even and 2 * (delay + SLACK_S) < ahead_of_window() then
      fill_bucket(delay)
    else
      begin_pace(q, SLIDING, q[PACE], now)
    end
  elseif even then
    fill_bucket(delay)
  else
    local used_requests, used_tokens = in_use(q, now)
    used_requests = verdict.rpm > 0 and verdict.rpm or used_requests
    used_tokens = verdict.tpm > 0 and verdict.tpm or used_tokens
    local sent = now + delay - MINUTE_S - GUARD_S
    begin_pace(q, SLIDING, { sent, used_requests, used_tokens }, now)
  end
  open_pace(q, now)
end

-- How far this clock is ahead of the asking host's; none within the guard, where both are right.
local function ahead()
  local skew = asked_at ~= '' and now - tonumber(asked_at) or 0
  return math.abs(skew) > GUARD_S and skew or 0
end

-- What a scope is about: whose record (billing, project, key), and the place in it.
local function place_of(scope)
  return ({
    billing = { 1, 'billing' }, project = { 2, 'project' }, key = { 3, 'key' },
    project_model = { 2, 'project_model:' .. told_bucket },
    key_model = { 3, 'key_model:' .. told_bucket },
    key_verb = { 3, 'key_verb:' .. verb }, project_cache = { 2, 'project_cache' },
  })[scope]
end

local function strike(place)
  local record, name = cool[place[1]], place[2]
  local rest = record[name] or { ['until'] = '0', strikes = 0 }
  local ends
  if verdict['until'] ~= '' then
    ends = seconds(verdict['until']) + ahead()
  else
    -- Requests that were under way together and fail together are one step of the ladder.
    if granted >= seconds(rest['until']) or rest.strikes == 0 then
      rest.strikes = rest.strikes + 1
    end
    ends = now + math.min(verdict.base_s * 2 ^ math.min(rest.strikes - 1, 60), verdict.max_s)
  end
  if ends >= seconds(rest['until']) or is_ahead(rest, now) then -- one that runs never ends sooner
    rest['until'], rest.failure, rest.waitable = exact(ends), verdict.failure, verdict.waitable
    rest.length = ends == math.huge and 'inf' or exact(ends - now)
  end
  rest.probe, rest.probe_until, record[name], touched[place[1]] = '', '0', rest, true
  return exact(seconds(rest['until']) - ahead())
end

local function punish()
  if told_bucket ~= bucket and bucket ~= '' then
    keep(at('bucket:' .. model), told_bucket, FOR_EVER_S)
  end
  learn()
  if verdict.is_minute_quota and lease ~= '' and told_bucket == bucket then
    judge()
    keep_quota(quota_name, q, now)
  end
  local place = place_of(verdict.scope)
  if place then
    return strike(place)
  end
end

-- Write ------------------------------------------------------------------------------------------

if kind == 'serving' then -- a stream's first chunk is here: the end comes later
  forgive()
elseif lease ~= '' then
  give_back()
end
for place = STORED, NAMES, 2 do
  keep(at('owner:' .. ARGV[place]), cjson.encode({ key, project }), tonumber(ARGV[place + 1]))
end
if kind == 'success' then
  h[SUCCESSES] = h[SUCCESSES] + 1
  if texts[4] and lease ~= '' then
    served()
  end
  forgive()
end
local until_s
if verdict then
  if kind ~= 'abandoned' then -- else a person disabled the key
    h[ERRORS], h[LAST_ERROR] = h[ERRORS] + 1, verdict.failure
  end
  until_s = punish()
end
if kind == 'success' or verdict then
  keep_health(health_name, h)
end
for whose in pairs(touched) do
  keep_rests(names[whose], cool[whose], now)
end
return until_s
