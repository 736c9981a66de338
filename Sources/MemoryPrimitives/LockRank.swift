// The order of locks: a processor may acquire only a lock of a higher rank than any that it holds. Ranks below 100
// are of spin locks, which a processor holds; those from 100 on of sleeping locks, which a thread holds. A thread
// acquires its sleeping locks before every spin lock, because it must not sleep with a spin lock held. Builds with
// assertions check ranks: the tests, and the kernel as the Makefile builds it.

import CPlatform

/// The position of a lock in the order. Gaps between neighbours leave numbers for later layers.
@frozen @usableFromInline package struct LockRank: Equatable, Sendable {
  @usableFromInline package let rawValue: UInt32
  /// Makes a rank of a number.
  @inlinable package init(_ rawValue: UInt32) { self.rawValue = rawValue }

  /// The table of pageable ranges.
  @inlinable package static var pagingMap: Self { Self(10) }
  /// A memory object: its slots, and the state of its pages.
  @inlinable package static var pagingObject: Self { Self(20) }
  @inlinable package static var vmemArena: Self { Self(30) }
  @inlinable package static var vmemTags: Self { Self(35) }
  @inlinable package static var pageTables: Self { Self(40) }
  @inlinable package static var kmemCaches: Self { Self(45) }
  @inlinable package static var kmemDepot: Self { Self(50) }
  @inlinable package static var kmemSlabs: Self { Self(55) }
  /// The zspages and handles of a compressed store.
  @inlinable package static var zsmalloc: Self { Self(56) }
  /// Slots of the swap device.
  @inlinable package static var pagingSwap: Self { Self(57) }
  @inlinable package static var pagingQueues: Self { Self(58) }
  /// The requests of a RAM disk.
  @inlinable package static var blockDevice: Self { Self(59) }
  @inlinable package static var physicalDomain: Self { Self(60) }
  @inlinable package static var registry: Self { Self(70) }
  /// Whether the serial port's ring of input is full.
  @inlinable package static var serialPort: Self { Self(75) }
  /// The scheduler's threads, running and sleeping.
  @inlinable package static var scheduler: Self { Self(80) }

  /// One of a workload's pages, with its expected contents.
  @inlinable package static var workload: Self { Self(110) }

  /// A trim of all caches, for whose end another thread may wait.
  @inlinable package static var kmemTrim: Self { Self(120) }

  /// Whether a thread that waits for the lock sleeps.
  package var kind: Kind { rawValue < 100 ? .spin : .sleeping }
  /// How a thread waits for a lock.
  package enum Kind: UInt8, Sendable { case spin, sleeping }

  /// Calls `body` with each rank and its name, in their order.
  package static func forEach(_ body: (LockRank, StaticString) -> Void) {
    body(.pagingMap, "paging map")
    body(.pagingObject, "paging object")
    body(.vmemArena, "vmem arena")
    body(.vmemTags, "vmem tags")
    body(.pageTables, "page tables")
    body(.kmemCaches, "kmem caches")
    body(.kmemDepot, "kmem depot")
    body(.kmemSlabs, "kmem slabs")
    body(.zsmalloc, "zsmalloc")
    body(.pagingSwap, "swap slots")
    body(.pagingQueues, "page queues")
    body(.blockDevice, "block device")
    body(.physicalDomain, "physical domain")
    body(.registry, "registry")
    body(.serialPort, "serial port")
    body(.scheduler, "scheduler")
    body(.workload, "workload")
    body(.kmemTrim, "kmem trim")
  }

  /// The name of the locks of this rank.
  package var name: StaticString {
    var found: StaticString = "an unnamed lock"
    Self.forEach { if $0 == self { found = $1 } }
    return found
  }

  /// Whether the processor may acquire a lock of this rank, while `held` is the rank of the innermost that is held.
  /// Leaves a note for the report otherwise. Interrupts are off.
  @usableFromInline func isAbove(_ held: UInt32) -> Bool {
    if held < rawValue { return true }
    cp_refuse_rank(rawValue)
    return false
  }

  /// The locks that this processor holds, and the one that it must not acquire beside them, for a report; nil when it
  /// holds none. Interrupts are off.
  package static var heldLocks: Line? {
    let refused = cp_refused_rank()
    var line = Line()
    func add(_ held: UInt32) {
      guard held != 0 else { return }
      line.append(line.count == 0 ? "holds " : " and ")
      line.append(line: "\(LockRank(held).name) (rank \(held))")
    }
    add(cp_held_sleeping())
    add(cp_held_rank())
    guard line.count > 0 else { return nil }
    if refused != 0 { line.append(line: ", and acquires \(LockRank(refused).name) (rank \(refused))") }
    return line
  }

  /// Counts a wait for a lock of this rank, if the processor has a table for that. Interrupts are off.
  @usableFromInline func recordWait(_ cycles: UInt64) {
    guard let waits = cp_processor().pointee.waits, rawValue < CP_LOCK_RANKS else { return }
    cp_wait_counts(waits)[Int(rawValue)] &+= 1
    let longest = cp_longest_waits(waits)
    if cycles > longest[Int(rawValue)] { longest[Int(rawValue)] = cycles }
  }
}
