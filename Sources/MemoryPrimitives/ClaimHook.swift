// Claims made without a lock: a processor claims an object by a compare-and-swap on a word, and acquires the lock that
// guards the object only afterwards. A test must try what another processor can do between the two, so the test machine
// is called after each claim. The kernel compiles this to nothing.

import CPlatform

/// Calls the test machine, if there is one, after this processor has claimed `word`. Locks may be held.
@inline(always) package func reportClaim(_ word: UnsafeRawPointer) { cp_claimed(word) }
