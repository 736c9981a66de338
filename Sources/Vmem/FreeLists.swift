// Free segments by size: segregated lists with a bitmap, so that a list whose every member is large enough is found
// in constant time. This is instant fit (Bonwick and Adams 2001); classes finer than powers of two are from Masmano
// et al.: "TLSF: a new dynamic memory allocator for real-time systems", 2004.
//
// Classes count quanta: 1 to 15 have a class each; above, each power of two is cut into eight. So instant fit may pass
// over a segment that suffices only if that is less than an eighth larger than the request. Powers of two, which most
// requests are, begin a class. One class more holds the one segment of 2^64 quanta.

/// A checked request as the search compares it with segments: see `ArenaConstraints`.
struct Request {
  /// Size less one: the distance from the first value to the last.
  var extent: UInt64
  var quanta: UInt64
  var alignment: UInt64
  var phase: UInt64
  /// Zero for none.
  var nocross: UInt64
  var minimum: UInt64
  var maximum: UInt64
  /// Every member of this class and above satisfies the request; nil when size alone can't show that.
  var sufficientClass: Int?

  /// Finds the lowest start for the request in `start ... last`; nil if it does not fit.
  ///
  /// With `nocross` at least the alignment, the lowest aligned start in a window of `nocross` is the window's plus the
  /// phase. A segment there does not cross, or `prepare` refused the constraint as impossible. So if the lowest start
  /// crosses, any other in that window does, and the next window's first is the answer.
  /// With `nocross` below the alignment all starts are alike, and don't cross.
  @inline(always) func lowestStart(in start: UInt64, _ last: UInt64) -> UInt64? {
    let low = max(start, minimum)
    let high = min(last, maximum)
    guard low <= high, high - low >= extent else { return nil }
    let gap = (phase &- low) & (alignment - 1)
    guard gap <= high - low, high - low - gap >= extent else { return nil }
    let lowest = low + gap
    guard nocross != 0, (lowest ^ (lowest + extent)) & ~(nocross - 1) != 0 else { return lowest }
    let windowEnd = lowest | (nocross - 1)
    guard high > windowEnd, high - windowEnd > phase, high - windowEnd - 1 - phase >= extent else {
      return nil
    }
    return windowEnd + 1 + phase
  }
}

/// The fields of a cursor, in place.
extension UnsafeMutablePointer<FreeLists.Cursor> {
  var list: Int {
    get { pointee.list }
    nonmutating set { pointee.list = newValue }
  }
  var next: Link {
    get { pointee.next }
    nonmutating set { pointee.next = newValue }
  }
  var best: Link {
    get { pointee.best }
    nonmutating set { pointee.best = newValue }
  }
  var isDisturbed: Bool {
    get { pointee.isDisturbed }
    nonmutating set { pointee.isDisturbed = newValue }
  }
  var wantsLargest: Bool { pointee.wantsLargest }
  var nextCursor: Self? {
    get { pointee.nextCursor }
    nonmutating set { pointee.nextCursor = newValue }
  }
}

struct FreeLists: ~Copyable {
  static var classes: Int { 497 }
  /// Classes below this hold segments of one size each.
  static var exactClasses: Int { 16 }
  /// Heads, rounded up to whole words of the bitmap.
  static var heads: Int { 512 }

  let links: TagLinks
  let shift: UInt64
  let head: UnsafeMutablePointer<Link>
  var words: InlineArray<8, UInt64> = .init(repeating: 0)
  var summary: UInt64 = 0
  /// Rises with each segment that is added to a list: a search that found nothing sees whether to search again.
  var insertions: UInt64 = 0
  /// Free segments.
  var count: UInt64 = 0
  /// Extent of the largest free segment, if `largestIsKnown`.
  var largest: UInt64 = 0
  var largestIsKnown = false
  /// Passes over the lists that dropped the lock.
  var cursors: UnsafeMutablePointer<Cursor>?

  /// The position of a pass while the lock is dropped.
  struct Cursor {
    /// The list that the pass examines.
    var list: Int
    /// The tag to examine next; none at the end of the list.
    var next: Link
    /// The best one found on this list.
    var best = Link.none
    /// The best one was removed.
    var isDisturbed = false
    /// The pass seeks the largest segment of its list, so segments added to it during the pass count.
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

  /// Computes the class that a number of quanta belongs to; zero stands for 2^64.
  @inline(always) static func index(quanta: UInt64) -> Int {
    if quanta < UInt64(exactClasses) { return quanta == 0 ? classes - 1 : Int(quanta) }
    let log = UInt64(63 - quanta.leadingZeroBitCount)
    return Int((log - 2) * 8 + ((quanta >> (log - 3)) & 7))
  }

  /// Computes the lowest class whose members all have `quanta`, which is not zero.
  @inline(always) static func sufficient(quanta: UInt64) -> Int {
    let own = index(quanta: quanta)
    if quanta < UInt64(exactClasses) { return own }
    let log = UInt64(63 - quanta.leadingZeroBitCount)
    return quanta & ((1 << (log - 3)) - 1) == 0 ? own : own + 1
  }

  /// Computes the class of a segment.
  @inline(always) func index(extent: UInt64) -> Int { Self.index(quanta: (extent >> shift) &+ 1) }

  /// Finds the first non-empty list at or above `list`.
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
    let extent = tag.extent
    let list = index(extent: extent)
    let first = head[list]
    tag.kind = .free
    tag.previous = .none
    tag.next = first
    if first == .none {
      words[list >> 6] |= 1 << UInt64(list & 63)
      summary |= 1 << UInt64(list >> 6)
    } else {
      links[first].previous = link
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
    if cursors != nil { updateCursors(link, extent, list) }
  }

  private func updateCursors(_ link: Link, _ extent: UInt64, _ list: Int) {
    var cursor = cursors
    while let here = cursor {
      let best = here.best
      if here.wantsLargest, here.list == list, best != .none,
        extent > links[best].extent
      {
        here.best = link
      }
      cursor = here.nextCursor
    }
  }

  mutating func remove(_ link: Link) {
    let tag = links[link]
    let (previous, next) = (tag.previous, tag.next)
    if next != .none { links[next].previous = previous }
    let extent = tag.extent
    if previous != .none {
      links[previous].next = next
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
    while let here = cursor {
      if here.next == link { here.next = next }
      if here.best == link {
        here.best = .none
        here.isDisturbed = true
      }
      cursor = here.nextCursor
    }
  }

  mutating func register(_ cursor: UnsafeMutablePointer<Cursor>) {
    cursor.nextCursor = cursors
    cursors = cursor
  }

  mutating func unregister(_ cursor: UnsafeMutablePointer<Cursor>) {
    if cursors == cursor {
      cursors = cursor.nextCursor
      return
    }
    var other = cursors
    while let here = other {
      if here.nextCursor == cursor {
        here.nextCursor = cursor.nextCursor
        return
      }
      other = here.nextCursor
    }
  }
}
