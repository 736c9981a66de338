// The free slots of the swap device.
//
// A bitmap, a bit set for a free slot, and over it the summary that a tree of 64-bit words makes: a bit of a
// word above says whether the word below has any bit set. So the next free slot after a given one is found in
// two words a level, five levels at most, however full the device is. This is van Emde Boas's idea with a
// fan of 64. All words lie in one array, level after level; behind them a bit for each bad slot.
//
// Runs are searched by next fit: from the cursor on, the first one as long as asked for. Where the next 48
// words that have free slots have none, the longest run in them is reserved. A request costs some thousand
// instructions at most; in return a fragmented device is written in shorter clusters than possible.

import MemoryPrimitives

/// A slot of the swap device for one page, by its number of 30 bits.
@frozen @usableFromInline package struct SwapSlot: Equatable, Comparable, Sendable {
  /// The number of the slot.
  @usableFromInline package var rawValue: UInt32
  /// The slot with that number.
  @inline(always) package init(_ rawValue: UInt32) { self.rawValue = rawValue }
  /// No slot: 30 ones.
  @inline(always) package static var none: Self { Self(1 << 30 - 1) }
  @inline(always) package static func < (a: Self, b: Self) -> Bool { a.rawValue < b.rawValue }
  @inline(always) package static func + (a: Self, b: PageCount) -> Self {
    Self(a.rawValue + UInt32(b.rawValue))
  }
}

/// Slots that follow each other, 1 to 32.
@usableFromInline package struct SlotRun: Equatable, Sendable {
  /// The first slot.
  @usableFromInline package var first: SwapSlot
  /// The number of slots.
  @usableFromInline package var count: PageCount
  /// The run of `count` slots from `first` on.
  @inline(always) package init(first: SwapSlot, count: PageCount) {
    self.first = first
    self.count = count
  }
}

/// The slots of a device: plain data under the lock of swap.
struct SwapSlots {
  let words: FrameArray<UInt64>
  private let levels: Int
  /// The index of the first word of the bits of bad slots.
  private let badStart: Int
  let total: Int
  private(set) var used = 0
  private(set) var bad = 0
  /// The slot where the next search begins.
  private var cursor = 0

  var free: Int { total &- used &- bad }

  /// Words of a level of a device with `total` slots.
  @inline(__always) private static func words(_ total: Int, at level: Int) -> Int {
    let shift = 6 &* (level &+ 1)
    return (total &+ (1 &<< shift &- 1)) &>> shift
  }

  /// Levels for a device of `total` slots: the highest has one word.
  private static func levels(_ total: Int) -> Int {
    var level = 0
    while words(total, at: level) > 1 { level += 1 }
    return level + 1
  }

  /// The index of the first word of `level` of a device with `total` slots: behind the levels below it.
  @inline(__always) private static func start(_ total: Int, of level: Int) -> Int {
    var start = 0
    for below in 0..<level { start &+= words(total, at: below) }
    return start
  }

  /// Words for a device with `total` slots.
  static func wordCount(_ total: Int) -> Int {
    start(total, of: levels(total)) + words(total, at: 0)
  }

  /// Creates `total` free slots, at most 2^30 - 1; `words` are zero and as many as `wordCount` says. A step for each
  /// 64 slots.
  init(_ words: FrameArray<UInt64>, total: Int) {
    self.words = words
    self.total = total
    levels = Self.levels(total)
    badStart = Self.start(total, of: levels)
    var count = total
    for level in 0..<levels {
      let start = Self.start(total, of: level)
      let full = count >> 6
      for i in 0..<full { words[start + i] = UInt64.max }
      if count & 63 != 0 { words[start + full] = 1 << UInt64(count & 63) - 1 }
      count = (count + 63) >> 6
    }
  }

  /// Frees the memory of the bitmap.
  func destroy() { words.free() }

  // MARK: Bits

  /// Word `index` of a level, in place.
  private subscript(level: Int, index: Int) -> UInt64 {
    unsafeAddress { UnsafePointer(words.pointer(to: Self.start(total, of: level) &+ index)) }
    nonmutating unsafeMutableAddress { words.pointer(to: Self.start(total, of: level) &+ index) }
  }

  /// The word with the bit of a slot that says whether the slot is bad, in place.
  private subscript(badWordOf slot: Int) -> UInt64 {
    unsafeAddress { UnsafePointer(words.pointer(to: badStart &+ slot >> 6)) }
    nonmutating unsafeMutableAddress { words.pointer(to: badStart &+ slot >> 6) }
  }

  /// The state of a slot.
  enum Status { case free, used, bad, beyond }

  @inline(__always) func status(of slot: SwapSlot) -> Status {
    let index = Int(slot.rawValue)
    guard index < total else { return .beyond }
    let bit: UInt64 = 1 &<< UInt64(index & 63)
    if self[0, index >> 6] & bit != 0 { return .free }
    return self[badWordOf: index] & bit != 0 ? .bad : .used
  }

  /// Sets the bit of `slot`, and those above it that were clear.
  private func set(_ slot: Int) {
    var index = slot
    for level in 0..<levels {
      let before = self[level, index >> 6]
      self[level, index >> 6] = before | 1 &<< UInt64(index & 63)
      if before != 0 { return }
      index >>= 6
    }
  }

  /// Clears the bits `mask` of a word of slots, and those above it if nothing is left.
  private func clear(_ mask: UInt64, of index: Int) {
    var (index, mask) = (index, mask)
    for level in 0..<levels {
      self[level, index] &= ~mask
      if self[level, index] != 0 { return }
      mask = 1 &<< UInt64(index & 63)
      index >>= 6
    }
  }

  /// The first free slot from `slot` on.
  private func next(from slot: Int) -> Int? {
    var (level, at, count) = (0, slot, total)
    while true {
      if at >= count { return nil }
      let bits = self[level, at >> 6] &>> UInt64(at & 63)
      if bits != 0 {
        at &+= bits.trailingZeroBitCount
        while level > 0 {
          level &-= 1
          at = at << 6 &+ self[level, at].trailingZeroBitCount
        }
        return at
      }
      level &+= 1
      if level == levels { return nil }
      at = at >> 6 &+ 1
      count = (count &+ 63) >> 6
    }
  }

  // MARK: Runs

  /// The most words with free slots that one search inspects.
  private static var scanBudget: Int { 48 }

  /// Reserves the next run of `wanted` free slots (1 to 32), or the longest of those that it inspected. Nil when
  /// no slot is free.
  mutating func reserve(upTo wanted: Int) -> SlotRun? {
    guard free > 0, wanted > 0 else { return nil }
    let (first, count) = find(upTo: wanted)
    assert(count > 0, "the summary of free slots is wrong")
    occupy(first, count)
    used &+= count
    cursor = first &+ count == total ? 0 : first &+ count
    return SlotRun(first: SwapSlot(UInt32(first)), count: PageCount(count))
  }

  /// Finds the first slot of such a run, and its length.
  private func find(upTo wanted: Int) -> (first: Int, count: Int) {
    var (best, first) = (0, 0)
    var (at, inspected) = (cursor, 0)
    var hasWrapped = false
    while best < wanted && !(best > 0 && inspected == Self.scanBudget) {
      guard let slot = next(from: at), !(hasWrapped && slot >= cursor) else {
        if hasWrapped { break }
        (hasWrapped, at) = (true, 0)
        continue
      }
      inspect(from: slot, wanted, &best, &first)
      at = (slot | 63) &+ 1
      inspected &+= 1
    }
    return (first, best)
  }

  /// Searches for a run longer than `best` that begins in the word of `slot`, there or behind it.
  @inline(__always)
  private func inspect(from slot: Int, _ wanted: Int, _ best: inout Int, _ first: inout Int) {
    let index = slot >> 6
    let bits = self[0, index] & UInt64.max &<< UInt64(slot & 63)
    let whole = Self.runs(of: wanted, in: bits)
    if whole != 0 {
      (best, first) = (wanted, index << 6 &+ whole.trailingZeroBitCount)
      return
    }
    while true {
      let longer = Self.runs(of: best &+ 1, in: bits)
      if longer == 0 { break }
      (best, first) = (best &+ 1, index << 6 &+ longer.trailingZeroBitCount)
    }
    // A run that reaches the end of the word may continue in the next.
    let tail = (~bits).leadingZeroBitCount
    if tail > 0 && (index &+ 1) << 6 < total {
      let length = min(wanted, tail &+ (~self[0, index &+ 1]).trailingZeroBitCount)
      if length > best { (best, first) = (length, (index &+ 1) << 6 &- tail) }
    }
  }

  /// A bit for each place in `bits` where a run of `length` (1 to 64) begins.
  @inline(__always) private static func runs(of length: Int, in bits: UInt64) -> UInt64 {
    var (found, have) = (bits, 1)
    while have < length {
      let step = min(have, length &- have)
      found &= found &>> UInt64(step)
      have &+= step
    }
    return found
  }

  private func occupy(_ first: Int, _ count: Int) {
    let bits: UInt64 = 1 &<< UInt64(count) &- 1
    let (index, shift) = (first >> 6, first & 63)
    clear(bits &<< UInt64(shift), of: index)
    let below = 64 &- shift
    if count > below { clear(bits &>> UInt64(below), of: index &+ 1) }
  }

  // MARK: Freeing

  /// Frees a slot, if it was used. Returns its state before.
  mutating func release(_ slot: SwapSlot) -> Status {
    let status = status(of: slot)
    guard status == .used else { return status }
    set(Int(slot.rawValue))
    used &-= 1
    return .used
  }

  /// Makes a slot bad, if it was used. Returns its state before.
  mutating func retire(_ slot: SwapSlot) -> Status {
    let status = status(of: slot)
    guard status == .used else { return status }
    let index = Int(slot.rawValue)
    self[badWordOf: index] |= 1 &<< UInt64(index & 63)
    used &-= 1
    bad &+= 1
    return .used
  }

  // MARK: Check

  /// Whether the counts are those of the bitmap. As long as the bitmap.
  var hasExactCounts: Bool {
    var (free, bad) = (0, 0)
    for index in 0..<(total + 63) >> 6 {
      let (bits, badBits) = (self[0, index], words[badStart + index])
      let valid = total - index << 6 < 64 ? UInt64(1) << UInt64(total - index << 6) - 1 : UInt64.max
      if bits & ~valid != 0 || badBits & ~valid != 0 || bits & badBits != 0 { return false }
      free += bits.nonzeroBitCount
      bad += badBits.nonzeroBitCount
    }
    return free == self.free && bad == self.bad && used >= 0
  }

  /// Whether the summary is that of the bitmap. As long as the bitmap.
  var hasExactSummary: Bool {
    var count = (total + 63) >> 6
    for level in 1..<max(1, levels) {
      for index in 0..<count {
        let isSet = self[level, index >> 6] & 1 << UInt64(index & 63) != 0
        if isSet != (self[level - 1, index] != 0) { return false }
      }
      count = (count + 63) >> 6
    }
    return true
  }
}
