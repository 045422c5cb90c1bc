-- Settle a lease: true tokens, concurrency, cooldowns, learned limits, owners, counts. acquire.lua
-- does so for most of the leases whose request succeeded.
--
-- ARGV:  1 clock ('' except in tests)  2 the calling host's clock, for the times of a verdict
--        3 key  4 project  5 account  6 record of the key  7 bucket  8 verb  9 requested model
--       10 outcome (success, failure, abandoned, unsent, serving)
--       11 true input tokens, '' if unknown
--       12 lease id, '' if nothing was reserved here: KeyManager reported the outcome
--       13 granted at  14 minute  15 near boundary  16 end of day  17 counted
--       18 requests reserved  19 tokens reserved
--       20 verdict (JSON), '' if there is none
--       21 cost in billionths of a dollar, '?' if unknown, '' without a budget
--       22 next Pacific midnights (JSON, ascending), '' without a budget
--       23 what keeps the costs of the service tier apart in which the request was served
--       24 id of this settle: that of the lease, if it was reserved here
--       25 and following: digest of a resource name, seconds to keep its owner
-- Returns {dropped, and a text of three words}: until when the scope of the failure cools down, by the calling
-- host's clock; and if it has counted a cost, the epoch and its changes. A dash if there is none.

local test_clock, host_now = ARGV[1], ARGV[2]
local key, project, account, record = ARGV[3], ARGV[4], ARGV[5], ARGV[6]
local bucket, verb, model = ARGV[7], ARGV[8], ARGV[9]
local outcome, used, lease = ARGV[10], tonumber(ARGV[11]), ARGV[12]
local granted, minute, near_boundary = tonumber(ARGV[13]), tonumber(ARGV[14]), ARGV[15] == '1'
local day_end, counted = tonumber(ARGV[16]), ARGV[17] == '1'
local requests, tokens = tonumber(ARGV[18]), tonumber(ARGV[19])
local verdict = ARGV[20] ~= '' and cjson.decode(ARGV[20]) or nil
local cost, midnights, price_suffix = ARGV[21], ARGV[22], ARGV[23]
local id, FIRST_RESOURCE = ARGV[24], 25

-- Read all records -------------------------------------------------------------------------------

-- Without a verdict, times only decide how long records are kept: the time of the grant is enough.
local now = verdict and clock(test_clock) or granted
local replies = replies_name(id)
local reply = call('HGET', replies, id)
if reply and is_settled(reply) then -- the caller did not receive the reply
  return { dropped, string.sub(reply, #SETTLED + 1) }
end
local names = cooldown_names(account, project, record)
local quota_name = full_quota_name(project, bucket)
names[4], names[5] = quota_name, KEYS[2]
local texts = redis.call('MGET', unpack(names))
local cooldowns, changed = {}, {} -- changed: indexes of cooldown records
for i = 1, 3 do
  cooldowns[i] = read_cooldowns(names[i], texts[i])
end
local q -- read when it is needed
local function get_quota()
  q = q or read_quota(quota_name, texts[4])
  return q
end
local active_scopes = (texts[1] or texts[2] or texts[3]) and scopes(bucket, verb) or {}
local reported_bucket = verdict and verdict.bucket ~= '' and verdict.bucket or bucket

-- The reservation --------------------------------------------------------------------------------

local function release()
  if texts[4] and outcome == 'unsent' then
    adjust(get_quota(), minute, near_boundary, day_end, -requests, -tokens)
    save_quota(quota_name, q, now)
  elseif texts[4] and used and used ~= tokens then
    adjust(get_quota(), minute, near_boundary, day_end, 0, used - tokens)
    save_quota(quota_name, q, now)
  end
  if counted then
    call('ZREM', full_name('lease:' .. record), lease)
  end
  for _, scope in ipairs(active_scopes) do
    local cooldown = cooldowns[scope[1]][scope[2]]
    if cooldown and cooldown.probe == lease then
      cooldown.probe, cooldown.probe_until, changed[scope[1]] = '', '0', true
    end
  end
end

-- Cooldowns --------------------------------------------------------------------------------------

local function end_cooldowns()
  if #active_scopes > 0 then
    for owner in pairs(clear_cooldowns(cooldowns, active_scopes, granted, clock(test_clock))) do
      changed[owner] = true
    end
  end
end

local function store_limits()
  if verdict.rpm < 0 and verdict.tpm < 0 and verdict.rpd < 0 then
    return
  end
  local learned_name, learned = quota_name, nil
  if reported_bucket == bucket then
    learned = get_quota()
  else
    learned_name = full_quota_name(project, reported_bucket)
    learned = read_quota(learned_name, read_text(learned_name))
  end
  local kept = learned[LEARNED_UNTIL] and now < learned[LEARNED_UNTIL]
  local function set(field, value)
    learned[field] = value >= 0 and value or kept and learned[field] or -1
  end
  set(LEARNED_RPM, verdict.rpm)
  set(LEARNED_TPM, verdict.tpm)
  set(LEARNED_RPD, verdict.rpd)
  learned[LEARNED_UNTIL] = now + DAY_S
  save_quota(learned_name, learned, now)
  record_bucket(reported_bucket, now)
end

-- Return how far this clock is ahead of the calling host's; 0 within the guard.
local function clock_skew()
  local skew = host_now ~= '' and now - tonumber(host_now) or 0
  return math.abs(skew) > GUARD_S and skew or 0
end

-- Return where a scope is stored: the index of the record (billing, project, key), and the field.
local function slot_of(scope)
  return ({
    billing = { 1, 'billing' }, project = { 2, 'project' }, key = { 3, 'key' },
    project_model = { 2, 'project_model:' .. reported_bucket },
    key_model = { 3, 'key_model:' .. reported_bucket },
    key_verb = { 3, 'key_verb:' .. verb }, project_cache = { 2, 'project_cache' },
  })[scope]
end

local function extend_cooldown(slot)
  local scopes, field = cooldowns[slot[1]], slot[2]
  local cooldown = scopes[field] or { ['until'] = '0', strikes = 0 }
  local ends
  if verdict['until'] ~= '' then
    ends = parse_seconds(verdict['until']) + clock_skew()
  else
    -- Requests that were in flight together and fail together count as one failure.
    if granted >= parse_seconds(cooldown['until']) or cooldown.strikes == 0 then
      cooldown.strikes = cooldown.strikes + 1
    end
    ends = now + math.min(verdict.base_s * 2 ^ math.min(cooldown.strikes - 1, 60), verdict.max_s)
  end
  -- An active cooldown is never shortened.
  if ends >= parse_seconds(cooldown['until']) or is_in_future(cooldown, now) then
    cooldown['until'], cooldown.waitable = format_exact(ends), verdict.waitable
    cooldown.failure = verdict.failure
    cooldown.length = ends == math.huge and 'inf' or format_exact(ends - now)
  end
  cooldown.probe, cooldown.probe_until = '', '0'
  scopes[field], changed[slot[1]] = cooldown, true
  return format_exact(parse_seconds(cooldown['until']) - clock_skew())
end

local function apply_verdict()
  if reported_bucket ~= bucket and bucket ~= '' then
    save(full_name('bucket:' .. model), reported_bucket, RECORD_TTL_S)
  end
  store_limits()
  local slot = slot_of(verdict.scope)
  if slot then
    return extend_cooldown(slot)
  end
end

-- Write ------------------------------------------------------------------------------------------

local epoch
if outcome == 'serving' then -- the first chunk of a stream has arrived: it ends later
  end_cooldowns()
elseif lease ~= '' then
  release()
  if cost ~= '' then
    local moment = clock(test_clock)
    local spending = read_spending(project, moment, midnights)
    settle_spending(spending, lease, bucket .. price_suffix, tonumber(cost), outcome == 'success')
    save_spending(project, spending, moment)
    epoch = tonumber(cost) and count_change(KEYS[2], texts[5])
  end
end
for i = FIRST_RESOURCE, #ARGV, 2 do
  save(full_name('owner:' .. ARGV[i]), cjson.encode({ key, project }), tonumber(ARGV[i + 1]))
end
if outcome == 'success' then
  count_end(key, 'successes')
  if texts[4] and lease ~= '' and drop_exceeded_limits(get_quota(), requests, used or 0) then
    save_quota(quota_name, q, now)
  end
  end_cooldowns()
end
local until_s
if verdict then
  if outcome ~= 'abandoned' then -- else an operator disabled the key
    redis.call('HSET', count_end(key, 'errors'), 'last_error', verdict.failure)
  end
  until_s = apply_verdict()
end
for owner in pairs(changed) do
  save_cooldowns(names[owner], cooldowns[owner], now)
end
epoch = epoch or { '-', 0 }
reply = string.format('%s %s %d', until_s or '-', epoch[ID], epoch[CHANGES])
if outcome ~= 'serving' then
  save_reply(replies, id, SETTLED .. reply)
end
return { dropped, reply }
