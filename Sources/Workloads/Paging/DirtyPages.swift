// Memory full of dirty pages, each stamped with its identity: the state in which a contiguous request is hard.
//
// A fill uses a share of all frames. They lie scattered over memory, with single free frames between them. First all
// free frames are allocated and dealt into 64 heaps by chance. They are freed a heap after the other as pages need
// them, and the rest at the end. So neither the frames in use nor the ages of pages depend on the order of the buddy
// queues. The reserve and the page daemon's target are lowered until memory is used up: otherwise those frames would
// lie in one run. Pages are touched in a scattered order too, so that neighbours in memory are no neighbours in the
// object.
//
// A stamp is 16 words over the page, and depends on the fill, the page and the offset. So a page that is torn, moved,
// exchanged or empty is detected. The words between them stay zero, and `verify` compares each: it finds a stray
// write at any offset. That costs some 1500 instructions a page; stamps alone would cost a third of it.

import KernelMemory
import MemoryPrimitives
import Paging
import PhysicalMemory

/// One fill: an object, a range that maps it, and the seed of its stamps.
package struct DirtyPages {
  package let object: MemoryObject
  package let address: VirtualAddress
  package let count: PageCount
  /// Pages that were written to: all, unless the fill was stopped.
  package private(set) var filled = PageCount.zero
  let seed: UInt64

  /// The result of a check of all pages.
  package struct Verdict: Sendable {
    package var intact: UInt64 = 0
    package var wrong: UInt64 = 0
    /// Pages that could not be read.
    package var unreadable: UInt64 = 0
    /// The first page that was not intact.
    package var first: VirtualAddress?
    package init() {}

    /// Pages that were looked at.
    package var examined: UInt64 { intact + wrong + unreadable }
    /// Pages that have lost their stamp.
    package var broken: UInt64 { wrong + unreadable }

    /// Adds the verdict on another fill.
    package mutating func add(_ other: Verdict) {
      intact += other.intact
      wrong += other.wrong
      unreadable += other.unreadable
      if first == nil { first = other.first }
    }
  }

  private static var step: UInt64 { Page.size / 16 }

  private func word(_ page: UInt64, _ place: UInt64) -> UInt64 {
    var word = (seed &+ page) &* 0x9e37_79b9_7f4a_7c15 ^ (place &+ 1) &* 0xbf58_476d_1ce4_e5b9
    word ^= word >> 31
    return word | 1
  }

  /// The step from one page to the next in the order of the fill: near the golden section, and without a common factor
  /// with the count, so that the order is scattered and has all pages.
  private var stride: UInt64 {
    var step = max(1, count.rawValue * 618 / 1000)
    while Self.gcd(step, count.rawValue) != 1 { step += 1 }
    return step
  }
  private static func gcd(_ a: UInt64, _ b: UInt64) -> UInt64 { b == 0 ? a : gcd(b, a % b) }

  /// Pages between two calls of an observer: to ask a terminal costs as much as a few pages.
  private static var reportedPages: UInt64 { 64 }

  /// `percent` of all frames.
  package static func share(_ percent: UInt64, of physical: FrameAllocator) -> PageCount {
    PageCount(physical.total.rawValue * percent / 100)
  }

  /// Creates `count` pages and writes to each. Throws when an access fails; then all pages are freed.
  ///
  /// Calls `progress` now and then with the number of pages that are written. It may end the fill: then these stay,
  /// and the rest read as zero.
  package static func fill<A: PageAccess>(
    _ count: PageCount, seed: UInt64, on memory: MemorySystem, _ access: A,
    progress: (UInt64) -> Pace = { _ in .goOn }
  ) throws(FillFailure) -> DirtyPages {
    var fill: DirtyPages
    do throws(PagingError) {
      fill = try DirtyPages(count, seed, memory)
    } catch {
      throw FillFailure(error: error, fitted: .zero, asked: count)
    }
    let stride = fill.stride
    var marks = Marks(memory, filling: count)
    var heaps = FrameHeaps(memory.physical, memory.machine)
    do throws(PagingError) {
      defer {
        heaps.free()
        marks.restore()
      }
      marks.lower()
      heaps.allocateAll(SeededRandom(seed: seed))
      for turn in 0..<count.rawValue {
        heaps.free(until: Marks.slack)
        try fill.write(turn * stride % count.rawValue, access)
        fill.filled = PageCount(turn + 1)
        marks.restoreWhenUsedUp(heaps.count)
        if reports(turn + 1, of: count.rawValue), progress(turn + 1) == .stop { break }
      }
    } catch {
      fill.release(memory)
      throw FillFailure(error: error, fitted: fill.filled, asked: count)
    }
    return fill
  }

  /// Creates the object and its range, without a page.
  private init(_ count: PageCount, _ seed: UInt64, _ memory: MemorySystem) throws(PagingError) {
    object = try memory.paging.createObject(ShortName("dirty"), count)
    do throws(PagingError) {
      address = try memory.paging.map(object, count: count)
    } catch {
      memory.paging.destroy(object)
      throw error
    }
    self.count = count
    self.seed = seed
  }

  private static func reports(_ done: UInt64, of total: UInt64) -> Bool {
    done % reportedPages == 0 || done == total
  }

  private func write<A: PageAccess>(_ page: UInt64, _ access: A) throws(PagingError) {
    let base = address + PageCount(page)
    for place in 0..<16 as Range<UInt64> {
      try access.store(base + ByteCount(place * Self.step), word(page, place))
    }
  }

  /// Whether these are the words of `page`: its stamp, and zeroes.
  private func holds(_ words: UnsafePointer<UInt64>, _ page: UInt64) -> Bool {
    let step = Int(Self.step / 8)
    for place in 0..<16 {
      let part = words + place * step
      guard part[0] == word(page, UInt64(place)) else { return false }
      var others: UInt64 = 0
      for i in 1..<step { others |= part[i] }
      guard others == 0 else { return false }
    }
    return true
  }

  /// Reads each page that was filled, and compares every word of it: in the order of addresses, or, when the fill was
  /// stopped, in the order of the fill.
  package func verify<A: PageAccess>(_ access: A, progress: (UInt64) -> Pace = { _ in .goOn }) -> Verdict {
    var verdict = Verdict()
    var storage = InlineArray<512, UInt64>(repeating: 0)
    let stride = filled == count ? 1 : stride
    for turn in 0..<filled.rawValue {
      let page = turn * stride % count.rawValue
      let base = address + PageCount(page)
      var isIntact = false
      do throws(PagingError) {
        isIntact = try withUnsafeMutablePointer(to: &storage) { (storage) throws(PagingError) in
          let words = UnsafeMutableRawPointer(storage).assumingMemoryBound(to: UInt64.self)
          try access.load(page: base, into: words)
          return holds(words, page)
        }
        if isIntact { verdict.intact += 1 } else { verdict.wrong += 1 }
      } catch {
        verdict.unreadable += 1
      }
      if !isIntact && verdict.first == nil { verdict.first = base }
      if Self.reports(turn + 1, of: filled.rawValue), progress(turn + 1) == .stop { break }
    }
    return verdict
  }

  /// Frees the range and all pages.
  package func release(_ memory: MemorySystem) {
    memory.paging.unmap(address, count)
    memory.paging.destroy(object)
  }
}

/// Why a fill ended before its last page. All of its pages are freed again.
package struct FillFailure: Error {
  package let error: PagingError
  /// Pages that were written to before.
  package let fitted: PageCount
  package let asked: PageCount
}

/// Frames that are held while memory is filled, linked through their first words in 64 heaps.
private struct FrameHeaps {
  let physical: FrameAllocator
  let machine: Machine
  private var heaps: InlineArray<64, FrameNumber> = .init(repeating: .none)
  /// The heap that frames are freed from.
  private var heap = 0
  /// Frames that are still held.
  private(set) var count = PageCount.zero

  init(_ physical: FrameAllocator, _ machine: Machine) {
    self.physical = physical
    self.machine = machine
  }

  /// Allocates all free frames.
  mutating func allocateAll(_ random: SeededRandom) {
    var random = random
    while physical.freeCount > .zero, let frame = allocate() {
      let heap = Int(random.below(64))
      machine.directMap.pointer(to: frame).storeBytes(of: heaps[heap].rawValue, as: UInt32.self)
      heaps[heap] = frame
      count += .one
    }
  }

  private func allocate() -> FrameNumber? {
    do throws(PhysicalMemoryError) {
      return try physical.allocateUnlogged(
        BlockOrder(0), role: .loaned, priority: .interrupt,
        for: FrameOwner("dirty, frames kept from it"))
    } catch {
      return nil
    }
  }

  /// Frees frames until `wanted` are free in memory, or none is left here.
  mutating func free(until wanted: PageCount = PageCount(UInt64.max)) {
    while heap < 64, physical.freeCount < wanted {
      let frame = heaps[heap]
      guard frame != .none else {
        heap += 1
        continue
      }
      heaps[heap] = FrameNumber(machine.directMap.pointer(to: frame).load(as: UInt32.self))
      physical.free(FrameRun(first: frame, count: .one))
      count -= .one
    }
  }
}

/// The watermarks of memory: the reserve for normal requests, and the page daemon's target.
private struct Marks {
  private let memory: MemorySystem
  private let reserve: PageCount
  private let target: PageCount
  /// With fewer free frames than this, memory is used up.
  private let bottom: PageCount
  private var isLowered = false

  /// Frames that stay free even so.
  static var slack: PageCount { 64 }

  init(_ memory: MemorySystem, filling count: PageCount) {
    self.memory = memory
    reserve = memory.physical.reserve(for: .normal)
    target = memory.paging.freeTarget
    if memory.physical.freeCount >= count + reserve {
      bottom = .zero
    } else {
      // Without swap the page daemon frees nothing, so the reserve is not touched.
      bottom = memory.paging.swap.device == nil ? reserve : PageCount(Self.slack.rawValue / 2)
    }
  }

  mutating func lower() {
    isLowered = true
    set(.zero, .zero)
  }
  mutating func restore() {
    if isLowered { set(reserve, target) }
    isLowered = false
  }
  /// Restores the watermarks when memory is used up; then only the page daemon frees frames. Frames that the fill holds
  /// are not used up.
  mutating func restoreWhenUsedUp(_ held: PageCount) {
    if isLowered && memory.physical.freeCount + held < bottom { restore() }
  }

  private func set(_ reserve: PageCount, _ target: PageCount) {
    // Both zero and the values before can be set.
    _ = try? memory.physical.setReserve(reserve, for: .normal)
    _ = memory.statistics.row(named: "vm.free_target")?.set(target.rawValue)
  }
}
