// Free segments by size: segregated lists with a bitmap, so that a list whose every member is large
// enough is found in constant time (instant fit; Bonwick and Adams 2001, and for classes finer than
// powers of two Masmano et al.: "TLSF: a new dynamic memory allocator for real-time systems", 2004).
//
// Classes count quanta: 1 to 15 have a class each; above, each power of two is cut into eight. So what
// instant fit passes over is less than an eighth larger than it need be, and powers of two, which are
// most requests, begin a class. One class more holds the one segment of 2^64 quanta.

/// The constraint part of a request, made ready: see `ArenaConstraints`.
struct Request {
  /// Size less one: what is to be added to the first value to get the last.
  var extent: UInt64
  var quanta: UInt64
  var alignment: UInt64
  var phase: UInt64
  /// Zero for none.
  var nocross: UInt64
  var minimum: UInt64
  var maximum: UInt64
  /// Every member of this class and above satisfies the request; nil when size alone can't tell.
  var sufficientClass: Int?

  /// The lowest place for the request in `start ... last`, or nil.
  ///
  /// With `nocross` at least the alignment, the lowest aligned place in a window of `nocross` is its start
  /// plus the phase, and that one does not cross (or the constraint was refused as impossible). So if
  /// the lowest place crosses, any other in that window does, and the next window's first is the answer.
  /// With `nocross` below the alignment all places are alike, and don't cross.
  @inline(always) func place(in start: UInt64, _ last: UInt64) -> UInt64? {
    let low = max(start, minimum)
    let high = min(last, maximum)
    guard low <= high, high - low >= extent else { return nil }
    let gap = (phase &- low) & (alignment - 1)
    guard gap <= high - low, high - low - gap >= extent else { return nil }
    let place = low + gap
    guard nocross != 0, (place ^ (place + extent)) & ~(nocross - 1) != 0 else { return place }
    let windowEnd = place | (nocross - 1)
    guard high > windowEnd, high - windowEnd > phase, high - windowEnd - 1 - phase >= extent else {
      return nil
    }
    return windowEnd + 1 + phase
  }
}

struct FreeLists: ~Copyable {
  static var classes: Int { 497 }
  /// Heads, rounded up to whole words of the bitmap.
  static var heads: Int { 512 }

  let links: TagLinks
  let shift: UInt64
  let head: UnsafeMutablePointer<Link>
  var words: InlineArray<8, UInt64> = .init(repeating: 0)
  var summary: UInt64 = 0
  /// Rises with each segment put on a list: who looked in vain sees whether to look again.
  var insertions: UInt64 = 0
  /// Free segments.
  var count: UInt64 = 0
  /// Extent of the largest free segment, if `largestIsKnown`.
  var largest: UInt64 = 0
  var largestIsKnown = false
  /// Passes over the lists that dropped the lock.
  var cursors: UnsafeMutablePointer<Cursor>?

  /// The place of a pass while the lock is dropped.
  struct Cursor {
    /// The list that is looked at.
    var list: Int
    /// The tag to be looked at next; none at the end of the list.
    var next: Link
    /// The best one found on this list.
    var best = Link.none
    /// The best one went away.
    var isDisturbed = false
    /// The pass looks for the largest segment of its list, so what is put on it meanwhile counts.
    var wantsLargest = false
    var nextCursor: UnsafeMutablePointer<Cursor>?

    init(list: Int) {
      self.list = list
      next = .none
    }
  }

  init(_ links: TagLinks, shift: UInt64, heads: UnsafeMutablePointer<Link>) {
    self.links = links
    self.shift = shift
    head = heads
    heads.initialize(repeating: .none, count: Self.heads)
  }

  /// The class that a number of quanta belongs to; zero stands for 2^64.
  @inline(always) static func index(quanta: UInt64) -> Int {
    if quanta < 16 { return quanta == 0 ? classes - 1 : Int(quanta) }
    let log = UInt64(63 - quanta.leadingZeroBitCount)
    return Int((log - 2) * 8 + ((quanta >> (log - 3)) & 7))
  }

  /// The lowest class whose members all have `quanta`, which is not zero.
  @inline(always) static func sufficient(quanta: UInt64) -> Int {
    let own = index(quanta: quanta)
    if quanta < 16 { return own }
    let log = UInt64(63 - quanta.leadingZeroBitCount)
    return quanta & ((1 << (log - 3)) - 1) == 0 ? own : own + 1
  }

  /// The class of a segment.
  @inline(always) func index(extent: UInt64) -> Int { Self.index(quanta: (extent >> shift) &+ 1) }

  /// The first non-empty list at or above `list`.
  @inline(always) func nonEmpty(from list: Int) -> Int? {
    guard list < Self.classes else { return nil }
    let word = list >> 6
    let here = words[word] >> UInt64(list & 63)
    if here != 0 { return list + here.trailingZeroBitCount }
    let above = summary & ~((2 << UInt64(word)) - 1)
    guard above != 0 else { return nil }
    let next = above.trailingZeroBitCount
    return next << 6 + words[next].trailingZeroBitCount
  }

  /// The highest non-empty list.
  var highest: Int? {
    guard summary != 0 else { return nil }
    let word = 63 - summary.leadingZeroBitCount
    return word << 6 + 63 - words[word].leadingZeroBitCount
  }

  mutating func insert(_ link: Link) {
    let tag = links[link]
    let extent = tag.pointee.extent
    let list = index(extent: extent)
    let first = head[list]
    tag.pointee.kind = .free
    tag.pointee.previous = .none
    tag.pointee.next = first
    if first == .none {
      words[list >> 6] |= 1 << UInt64(list & 63)
      summary |= 1 << UInt64(list >> 6)
    } else {
      links[first].pointee.previous = link
    }
    head[list] = link
    insertions &+= 1
    count += 1
    if count == 1 {
      largest = extent
      largestIsKnown = true
    } else if largestIsKnown, extent > largest {
      largest = extent
    }
    if cursors != nil { showCursors(link, extent, list) }
  }

  private func showCursors(_ link: Link, _ extent: UInt64, _ list: Int) {
    var cursor = cursors
    while let place = cursor {
      let best = place.pointee.best
      if place.pointee.wantsLargest, place.pointee.list == list, best != .none,
        extent > links[best].pointee.extent
      {
        place.pointee.best = link
      }
      cursor = place.pointee.nextCursor
    }
  }

  mutating func remove(_ link: Link) {
    let tag = links[link]
    let (previous, next) = (tag.pointee.previous, tag.pointee.next)
    if next != .none { links[next].pointee.previous = previous }
    let extent = tag.pointee.extent
    if previous != .none {
      links[previous].pointee.next = next
    } else {
      let list = index(extent: extent)
      head[list] = next
      if next == .none {
        words[list >> 6] &= ~(1 << UInt64(list & 63))
        if words[list >> 6] == 0 { summary &= ~(1 << UInt64(list >> 6)) }
      }
    }
    count -= 1
    if extent == largest { largestIsKnown = false }
    var cursor = cursors
    while let place = cursor {
      if place.pointee.next == link { place.pointee.next = next }
      if place.pointee.best == link {
        place.pointee.best = .none
        place.pointee.isDisturbed = true
      }
      cursor = place.pointee.nextCursor
    }
  }

  mutating func register(_ cursor: UnsafeMutablePointer<Cursor>) {
    cursor.pointee.nextCursor = cursors
    cursors = cursor
  }

  mutating func unregister(_ cursor: UnsafeMutablePointer<Cursor>) {
    if cursors == cursor {
      cursors = cursor.pointee.nextCursor
      return
    }
    var place = cursors
    while let here = place {
      if here.pointee.nextCursor == cursor {
        here.pointee.nextCursor = cursor.pointee.nextCursor
        return
      }
      place = here.pointee.nextCursor
    }
  }
}
