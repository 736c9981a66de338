// What must be as it was when everything was given back: frames by role, and what each layer's users hold.
//
// Tags come and go by the page. What belongs to pageable memory can be compared only where nobody else has any:
// under pressure, the pages of others go out to swap.

import KernelMemory
import Kmem
import MemoryPrimitives
import Paging
import PhysicalMemory

/// Counts of one moment, in which nothing runs.
struct Holdings {
  private var roles: InlineArray<18, UInt64> = .init(repeating: 0)
  private var objects: UInt64
  private var ranges: UInt64
  private var wired: UInt64
  private var swapped: UInt64
  private var bytes: UInt64

  /// All magazines are emptied first. `own` pages, with the role `wired`, are the asker's.
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
  }

  /// The first count that is another one later.
  func difference(to later: Holdings) -> StressTrouble? {
    func trouble(_ invariant: StaticString, _ subject: UInt64, _ now: UInt64, _ before: UInt64)
      -> StressTrouble
    {
      var trouble = StressTrouble(invariant)
      (trouble.subject, trouble.found, trouble.expected) = (subject, now, before)
      return trouble
    }
    for number in 0..<FrameRole.count where roles[number] != later.roles[number] {
      guard let role = FrameRole(rawValue: UInt8(number)), isComparable(role) else { continue }
      return trouble("frames did not come back", UInt64(number), later.roles[number], roles[number])
    }
    if later.objects != objects { return trouble("memory objects stayed", 0, later.objects, objects) }
    if later.ranges != ranges { return trouble("pageable ranges stayed", 0, later.ranges, ranges) }
    if later.wired != wired { return trouble("pages stayed wired", 0, later.wired, wired) }
    guard objects == 0 else { return nil }
    if later.swapped != swapped { return trouble("slots of swap stayed", 0, later.swapped, swapped) }
    if later.bytes != bytes { return trouble("objects of kmem stayed", 0, later.bytes, bytes) }
    return nil
  }

  private func isComparable(_ role: FrameRole) -> Bool {
    switch role {
    case .free, .tags: false
    case .pageable, .paging, .slab, .kmem, .pageTable: objects == 0
    default: true
    }
  }
}
