// Claims made without a lock: a compare-and-swap on a word keeps other processors off, and only then does the processor
// take the lock under which it looks at what it has claimed. What another processor does between the two is what a
// test has to try, so the test machine is told of each claim. The kernel compiles this to nothing.

import CPlatform

/// Tells the test machine, if there is one, that this processor has just claimed `word`. Locks may be held.
@inline(always) public func noteClaim(_ word: UnsafeRawPointer) { cp_claimed(word) }
