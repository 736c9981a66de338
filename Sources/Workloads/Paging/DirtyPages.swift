// Memory full of dirty pages, each stamped with what it is: the state in which a contiguous request is hard.
//
// A fill takes a share of all frames. They lie scattered over memory, single frames free between them: all are
// carved out at first, dealt into 64 heaps by chance, and come back a heap after the other as pages need them; what
// is left then is given back. So which frames are used, and which pages are old, has nothing to do with the order
// in which the buddy queues give. The reserve and what the page daemon keeps free are lowered until memory is used
// up: they would lie where memory is spared, in one run. Pages are touched in a scattered order too, so that
// neighbours in memory are no neighbours in the object.
//
// A stamp is 16 words over the page and depends on the fill, the page and the place, so a page that comes
// back torn, moved, mixed up or empty is found out. The words between them stay zero, and `verify`
// compares each: it finds a stray write at any place. That costs some 1500 instructions a page, where stamps alone
// would cost a third of it.

import KernelMemory
import MemoryPrimitives
import Paging
import PhysicalMemory

/// One fill: an object, a range that shows it, and what its pages hold.
public struct DirtyPages {
  public let object: MemoryObject
  public let address: VirtualAddress
  public let count: PageCount
  /// Pages that were written to: all, unless the fill was stopped.
  public private(set) var filled = PageCount.zero
  let seed: UInt64

  /// What looking at each page has found.
  public struct Verdict: Sendable {
    public var intact: UInt64 = 0
    public var wrong: UInt64 = 0
    /// Pages that could not be read.
    public var unreadable: UInt64 = 0
    /// The first page that was not intact.
    public var first: VirtualAddress?
    public init() {}
  }

  public enum GoOn: Sendable { case goOn, stop }

  private static var step: UInt64 { Page.size / 16 }

  private func word(_ page: UInt64, _ place: UInt64) -> UInt64 {
    var word = (seed &+ page) &* 0x9e37_79b9_7f4a_7c15 ^ (place &+ 1) &* 0xbf58_476d_1ce4_e5b9
    word ^= word >> 31
    return word | 1
  }

  /// From one page to the next to be filled: a step near the golden section that shares no factor with the
  /// count, so that all come by in an order that jumps about.
  private var stride: UInt64 {
    var step = max(1, count.rawValue * 618 / 1000)
    while Self.gcd(step, count.rawValue) != 1 { step += 1 }
    return step
  }
  private static func gcd(_ a: UInt64, _ b: UInt64) -> UInt64 { b == 0 ? a : gcd(b, a % b) }

  /// Makes `count` pages and writes to each. What can't be had is given back.
  ///
  /// `progress` is told how many pages are written, and may end it: then those stay, and the rest read as zero.
  public static func fill<A: PageAccess>(
    _ count: PageCount, seed: UInt64, on memory: MemorySystem, _ access: A,
    progress: (UInt64) -> GoOn = { _ in .goOn }
  ) throws(PagingError) -> DirtyPages {
    let paging = memory.paging
    let object = try paging.createObject(Name("dirty"), count)
    let address: VirtualAddress
    do throws(PagingError) {
      address = try paging.map(object, count: count)
    } catch {
      paging.destroy(object)
      throw error
    }
    var fill = DirtyPages(object: object, address: address, count: count, seed: seed)
    let stride = fill.stride
    var marks = Marks(memory, filling: count)
    var aside = Aside(memory.physical, memory.machine)
    do throws(PagingError) {
      defer {
        aside.giveBack()
        marks.restore()
      }
      marks.lower()
      aside.takeAll(SeededRandom(seed: seed))
      for turn in 0..<count.rawValue {
        aside.giveBack(until: Marks.slack)
        try fill.write(turn * stride % count.rawValue, access)
        fill.filled = PageCount(turn + 1)
        marks.restoreWhenUsedUp(aside.count)
        if progress(turn + 1) == .stop { break }
      }
    } catch {
      fill.release(memory)
      throw error
    }
    return fill
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

  /// Reads each page that was filled, every word of it, and compares: in the order of addresses, or, when the fill was
  /// stopped, in that in which they were filled.
  public func verify<A: PageAccess>(_ access: A, progress: (UInt64) -> GoOn = { _ in .goOn }) -> Verdict {
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
      if progress(turn + 1) == .stop { break }
    }
    return verdict
  }

  /// Gives up the range and all pages.
  public func release(_ memory: MemorySystem) {
    memory.paging.unmap(address, count)
    memory.paging.destroy(object)
  }
}

/// Frames that are carved out while memory is filled, linked through their first words in 64 heaps.
private struct Aside {
  let physical: FrameAllocator
  let machine: Machine
  private var heaps: InlineArray<64, FrameNumber> = .init(repeating: .none)
  /// The heap that frames come back from.
  private var heap = 0
  /// Frames that have not come back yet.
  private(set) var count = PageCount.zero

  init(_ physical: FrameAllocator, _ machine: Machine) {
    self.physical = physical
    self.machine = machine
  }

  /// Takes all that is free.
  mutating func takeAll(_ random: SeededRandom) {
    var random = random
    while physical.freeCount > .zero, let frame = take() {
      let heap = Int(random.below(64))
      machine.directMap.pointer(to: frame).storeBytes(of: heaps[heap].rawValue, as: UInt32.self)
      heaps[heap] = frame
      count = count + .one
    }
  }

  private func take() -> FrameNumber? {
    do throws(PhysicalMemoryError) {
      return try physical.allocate(Order(0), role: .loaned, priority: .interrupt)
    } catch {
      return nil
    }
  }

  /// Gives frames back until so many are free, or none is left.
  mutating func giveBack(until wanted: PageCount = PageCount(UInt64.max)) {
    while heap < 64, physical.freeCount < wanted {
      let frame = heaps[heap]
      guard frame != .none else {
        heap += 1
        continue
      }
      heaps[heap] = FrameNumber(machine.directMap.pointer(to: frame).load(as: UInt32.self))
      physical.free(FrameRun(first: frame, count: .one))
      count = count - .one
    }
  }
}

/// What memory keeps free: for normal requests, and by the page daemon.
private struct Marks {
  private let memory: MemorySystem
  private let reserve: PageCount
  private let target: PageCount
  /// With fewer than this, all that there is has been used.
  private let bottom: PageCount
  private var isLowered = false

  /// Frames that are left even so.
  static var slack: PageCount { PageCount(UInt64(64)) }

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
  /// From here on frames are had from the page daemon, if at all. What is carved out is not used up.
  mutating func restoreWhenUsedUp(_ aside: PageCount) {
    if isLowered && memory.physical.freeCount + aside < bottom { restore() }
  }

  private func set(_ reserve: PageCount, _ target: PageCount) {
    // What was in force, and nothing, are values that can be set.
    _ = try? memory.physical.setReserve(reserve, for: .normal)
    let name = Name("vm.free_target")
    for i in 0..<memory.statistics.count where Name(memory.statistics[i].name) == name {
      _ = memory.statistics[i].set(target.rawValue)
    }
  }
}
