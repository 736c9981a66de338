// The memory in use at one moment: frames by role, and the resources of each layer's users. After everything is
// freed, it must be as before.
//
// Tags are allocated and freed by the page, so their frames are not compared. Frames of pageable memory are compared
// only where no other user has any: under pressure, the pages of others are written to swap. So are zspages, because
// compaction moves the objects of others.

import KernelMemory
import Kmem
import MemoryPrimitives
import Paging
import PhysicalMemory

/// Counts of one moment, at which no thread runs.
struct UsageSnapshot {
  private var roles: InlineArray<18, UInt64> = .init(repeating: 0)
  private var objects: UInt64
  private var ranges: UInt64
  private var wired: UInt64
  private var swapped: UInt64
  private var bytes: UInt64
  private var stored: UInt64

  /// Takes a snapshot, after it has emptied all magazines. `own` pages, with the role `wired`, belong to the caller.
  init(_ memory: MemorySystem, _ own: PageCount = .zero) {
    memory.kmem.drain()
    for number in 0..<FrameRole.count {
      if let role = FrameRole(rawValue: UInt8(number)) {
        roles[number] = memory.physical.count(role).rawValue
      }
    }
    roles[Int(FrameRole.wired.rawValue)] -= own.rawValue
    // Kmem keeps the tables that it has made for caches and types.
    roles[Int(FrameRole.kmem.rawValue)] &-= memory.kmem.metadataBytes.pagesRoundedUp.rawValue
    let figures = memory.paging.figures
    (objects, ranges, wired) = (figures.objects, figures.ranges, figures.wired)
    swapped = memory.paging.swap.figures.used.rawValue
    bytes = memory.kmem.usedBytes.rawValue
    let compressed = memory.compressed.figures
    stored = compressed.objects
    roles[Int(FrameRole.wired.rawValue)] &-= compressed.tableFrames.rawValue
  }

  /// The first count that differs in a later snapshot.
  func difference(to later: UsageSnapshot) -> StressFailure? {
    func failure(_ invariant: StaticString, _ subject: UInt64, _ now: UInt64, _ before: UInt64)
      -> StressFailure
    {
      var failure = StressFailure(invariant)
      (failure.subject, failure.found, failure.expected) = (subject, now, before)
      return failure
    }
    for number in 0..<FrameRole.count where roles[number] != later.roles[number] {
      guard let role = FrameRole(rawValue: UInt8(number)), isComparable(role) else { continue }
      return failure("frames were not freed", UInt64(number), later.roles[number], roles[number])
    }
    if later.stored != stored {
      return failure("objects of the compressed store stayed", 0, later.stored, stored)
    }
    if later.objects != objects { return failure("memory objects stayed", 0, later.objects, objects) }
    if later.ranges != ranges { return failure("pageable ranges stayed", 0, later.ranges, ranges) }
    if later.wired != wired { return failure("pages stayed wired", 0, later.wired, wired) }
    guard objects == 0 else { return nil }
    if later.swapped != swapped { return failure("slots of swap stayed", 0, later.swapped, swapped) }
    if later.bytes != bytes { return failure("objects of kmem stayed", 0, later.bytes, bytes) }
    return nil
  }

  private func isComparable(_ role: FrameRole) -> Bool {
    switch role {
    case .free, .tags: false
    case .zspage: stored == 0
    case .pageable, .paging, .slab, .kmem, .pageTable: objects == 0
    default: true
    }
  }
}
