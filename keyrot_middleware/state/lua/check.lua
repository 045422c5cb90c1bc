-- Check that this server accepts writes, and whether it has lost data.
--
-- ARGV: clock ('' except in tests); the epoch that the caller knows, '' if none, its changes,
--       earlier epochs; the id of a new epoch.
-- Returns {dropped, epoch, its changes, epoch and changes of the data that was kept}.

local epoch = current_epoch(KEYS[2], read_text(KEYS[2]), unpack(ARGV, 2))
save_epoch(KEYS[2], epoch)
return { dropped, unpack(epoch) }
