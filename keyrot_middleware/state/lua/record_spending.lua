-- Count what was spent of a budget without a lease, while this server was unreachable.
--
-- ARGV: clock ('' except in tests), next Pacific midnights (JSON, ascending), project, amount in
--       billionths of a dollar.

local now = clock(ARGV[1])
local spending = read_spending(ARGV[3], now, ARGV[2])
spending[SPENT] = spending[SPENT] + tonumber(ARGV[4])
save_spending(ARGV[3], spending, now)
