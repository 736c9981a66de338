// MemoryPrimitives: the types that all layers share, and the interface to the machine under an instance.
//
// STRUCTURES
//
// Units (Units.swift) keep frame numbers, addresses, pages and bytes apart. Locks are a spin lock that switches interrupts
// off (SpinLock.swift), a sleeping lock (SleepLock.swift) and plain data behind a spin lock (Locked.swift). A wait queue
// (WaitQueue.swift) is the one primitive for waiting. `Machine` has the direct map and the upcalls to the executive.
// Intrusive lists (IntrusiveList.swift) and layouts (StorageLayout.swift) need no allocator, nor do names and lines of
// text (ShortName.swift, Line.swift). The registry of statistics, the failure log, fault reports and fault injection are the
// same for every layer.
//
// INVARIANTS
//
// A lock of a lower or equal rank is never acquired while one is held (LockRank.swift). No upcall and no sleep happens
// with a spin lock held. Assertions check both in tests and in the kernel as the Makefile builds it. A unit never wraps.
// These rules hold at each moment, so no function checks them afterwards, and they have no numbers.
//
// LOCKS
//
// The failure log has a spin lock of rank `registry`. Counters and rows of statistics are read without one.
//
// COST
//
// Functions of units, locks, counters and lists are inlined into their callers. An acquired and released spin lock costs
// one compare-and-swap and one store, with interrupts switched off and on. A sleeping lock costs two atomic exchanges
// while no thread waits. A report or a record in the failure log happens on failing paths only.
//
// EXHAUSTION
//
// Nothing here allocates. Text beyond the capacity of a name or a line is cut off; a full table of statistics traps
// during assembly; the failure log overwrites its oldest record.
//
// SOURCES
//
// FreeBSD's witness(4) for ranks of locks, counter(9) for counters of one writer. Intel SDM vol. 3A for shootdowns.
