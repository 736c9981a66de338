// The data of an arena under its lock: spans, segments, spare tags, and the operations on them that need
// nothing from outside. Nothing here calls anybody but the supply of tags, whose lock ranks above.

import MemoryPrimitives

/// Tags that an arena keeps: what an operation may need is secured here before it starts.
struct SpareTags {
  var first = Link.none
  var count: UInt32 = 0
  /// Of these, what operations secured that dropped the lock: not there for anybody else.
  var hidden: UInt32 = 0
  /// Somebody found too few while some were hidden, and perhaps sleeps: to be woken when they are back.
  var wereMissed = false

  /// Above this many unhidden spares, those beyond half of it go back to the supply. Few, for each of
  /// them may keep a page of tags from going back.
  static var most: UInt32 { 8 }

  var available: UInt32 { count - hidden }
}

struct ArenaCore: ~Copyable {
  /// Tags that a pass looks at in one go under the lock: about 15 instructions each.
  static var searchBudget: UInt32 { 512 }
  /// How often a pass starts again because others put segments into the lists behind it.
  static var searchRounds: UInt32 { 8 }
  /// Tags that instant fit looks at, beyond heads, before it asks the source.
  static var quickLook: UInt32 { 32 }

  let links: TagLinks
  /// The binary logarithm of the quantum.
  let shift: UInt64
  let tags: Tags
  var spares = SpareTags()
  var lists: FreeLists
  var hash: BusyHash
  var firstSpan = Link.none
  var lastSpan = Link.none
  var spans: UInt64 = 0
  /// Sizes modulo 2^64: a zero beside a count that isn't zero means 2^64.
  var total: UInt64 = 0
  var allocated: UInt64 = 0
  var walkers: UnsafeMutablePointer<Walker>?
  /// Lists and tags that were looked at.
  var visited: UInt64 = 0

  /// The place of a walk while the lock is dropped. When its tag goes, it moves on.
  struct Walker {
    /// The span to be looked at when the segments of the present one are done.
    var span = Link.none
    var segment = Link.none
    var nextWalker: UnsafeMutablePointer<Walker>?
  }

  // MARK: Spare tags

  /// Makes `count` spares available, from the supply's tags. False when the supply must grow first.
  mutating func secure(_ count: UInt32) -> Bool {
    if spares.available >= count { return true }
    add(tags.state.pointee.pool.withLock { $0.take(SpareTags.most / 2) })
    if spares.available >= count { return true }
    if spares.hidden != 0 { spares.wereMissed = true }
    return false
  }

  private mutating func add(_ chain: TagChain) {
    var tag = chain.first
    while tag != .none {
      let next = links[tag].pointee.next
      discard(tag)
      tag = next
    }
  }

  private mutating func takeSpare() -> Link {
    precondition(spares.available > 0, "a tag was needed that nobody secured")
    let tag = spares.first
    spares.first = links[tag].pointee.next
    spares.count -= 1
    return tag
  }

  private mutating func discard(_ tag: Link) {
    links[tag].pointee.kind = .unused
    links[tag].pointee.next = spares.first
    spares.first = tag
    spares.count += 1
  }

  /// Returns spares beyond the usual to the supply, or all for `keeping` zero. Whether there were any.
  mutating func returnSpares(keeping: UInt32 = SpareTags.most / 2) -> Bool {
    guard keeping == 0 ? spares.available > 0 : spares.available > SpareTags.most else { return false }
    var chain = TagChain.empty
    while spares.available > keeping {
      let tag = takeSpare()
      links[tag].pointee.next = chain.first
      chain.first = tag
      chain.count += 1
    }
    tags.state.pointee.pool.withLock { $0.give(chain) }
    return true
  }

  // MARK: Spans

  /// Puts in a span as one free segment, not yet on a list. Takes two secured tags; gives the segment.
  mutating func addSpan(_ kind: TagKind, _ start: UInt64, _ last: UInt64) -> Link {
    let span = takeSpare()
    let segment = takeSpare()
    links[span].pointee.set(kind, start, last)
    links[segment].pointee.set(.free, start, last)
    links[span].pointee.nextSegment = segment
    links[segment].pointee.previousSegment = span
    links[span].pointee.previous = lastSpan
    if lastSpan == .none { firstSpan = span } else { links[lastSpan].pointee.next = span }
    lastSpan = span
    spans += 1
    total &+= last &- start &+ 1
    return segment
  }

  /// Takes out a span whose one segment is free and on no list.
  mutating func removeSpan(_ span: Link, _ segment: Link) {
    let tag = links[span]
    let (previous, next) = (tag.pointee.previous, tag.pointee.next)
    if previous == .none { firstSpan = next } else { links[previous].pointee.next = next }
    if next == .none { lastSpan = previous } else { links[next].pointee.previous = previous }
    spans -= 1
    total &-= tag.pointee.extent &+ 1
    var walker = walkers
    while let place = walker {
      if place.pointee.span == span { place.pointee.span = next }
      if place.pointee.segment == segment { place.pointee.segment = .none }
      walker = place.pointee.nextWalker
    }
    discard(segment)
    discard(span)
  }

  // MARK: Segments

  private func insertSegment(_ link: Link, after previous: Link) {
    let next = links[previous].pointee.nextSegment
    links[link].pointee.previousSegment = previous
    links[link].pointee.nextSegment = next
    links[previous].pointee.nextSegment = link
    if next != .none { links[next].pointee.previousSegment = link }
  }

  private mutating func removeSegment(_ link: Link) {
    let (previous, next) = (links[link].pointee.previousSegment, links[link].pointee.nextSegment)
    links[previous].pointee.nextSegment = next
    if next != .none { links[next].pointee.previousSegment = previous }
    var walker = walkers
    while let place = walker {
      if place.pointee.segment == link { place.pointee.segment = next }
      walker = place.pointee.nextWalker
    }
    discard(link)
  }

  /// Makes `start ... last` of the free segment `link`, which is on no list, busy. Takes a secured tag for
  /// each remainder.
  mutating func carve(_ link: Link, _ start: UInt64, _ last: UInt64, _ site: CallSite) {
    let tag = links[link]
    if tag.pointee.start < start {
      let left = takeSpare()
      links[left].pointee.set(.free, tag.pointee.start, start - 1)
      insertSegment(left, after: tag.pointee.previousSegment)
      lists.insert(left)
    }
    if tag.pointee.last > last {
      let right = takeSpare()
      links[right].pointee.set(.free, last + 1, tag.pointee.last)
      insertSegment(right, after: link)
      lists.insert(right)
    }
    tag.pointee.start = start
    tag.pointee.last = last
    tag.pointee.kind = .busy
    tag.pointee.callSite = site
    hash.insert(link)
    allocated &+= last &- start &+ 1
  }

  /// What a free has to do when the lock is dropped.
  struct Aftermath {
    /// An imported span that goes back to the source.
    var released: (start: UInt64, last: UInt64)?
    /// Pages that the hash gave up.
    var pages = Link.none
    /// Tags went back to the supply.
    var gaveTags = false
  }

  /// Makes a busy segment free and joins it with its neighbours.
  mutating func release(_ busy: BusyHash.Place) -> Aftermath {
    var after = Aftermath()
    hash.remove(busy)
    let tag = links[busy.link]
    allocated &-= tag.pointee.extent &+ 1
    var link = busy.link
    tag.pointee.kind = .free
    let next = tag.pointee.nextSegment
    if next != .none, links[next].pointee.kind == .free {
      lists.remove(next)
      tag.pointee.last = links[next].pointee.last
      removeSegment(next)
    }
    let previous = tag.pointee.previousSegment
    if links[previous].pointee.kind == .free {
      lists.remove(previous)
      links[previous].pointee.last = tag.pointee.last
      removeSegment(link)
      link = previous
    }
    let before = links[link].pointee.previousSegment
    if links[before].pointee.kind == .imported, links[link].pointee.nextSegment == .none {
      after.released = (links[link].pointee.start, links[link].pointee.last)
      removeSpan(before, link)
    } else {
      lists.insert(link)
    }
    after.pages = hash.shrink()
    after.gaveTags = returnSpares()
    return after
  }

  // MARK: Searching

  /// A free segment and the place in it.
  struct Found {
    var link: Link
    var place: UInt64
  }

  /// Takes what was found off its list and cuts the request out of it.
  mutating func take(_ found: Found, _ request: Request, _ site: CallSite) {
    lists.remove(found.link)
    carve(found.link, found.place, found.place + request.extent, site)
  }

  private mutating func look(at link: Link, _ request: Request) -> UInt64? {
    visited += 1
    return request.place(in: links[link].pointee.start, links[link].pointee.last)
  }

  /// Instant fit: the head of the first list that surely suffices, or, where a constraint makes lists
  /// unsure, the heads of those above; then a short look at the lists below, whose members may or may not
  /// fit.
  mutating func quick(_ request: Request) -> Found? {
    let own = FreeLists.index(quanta: request.quanta)
    var left = Self.quickLook
    var end = FreeLists.classes
    if let sufficient = request.sufficientClass {
      end = sufficient
      visited += 1
      if let list = lists.nonEmpty(from: sufficient) {
        let link = lists.head[list]
        if let place = look(at: link, request) { return Found(link: link, place: place) }
      }
    } else {
      var list = lists.nonEmpty(from: min(own + 1, FreeLists.classes))
      while let here = list, left > 0 {
        left -= 1
        visited += 1
        let link = lists.head[here]
        if let place = look(at: link, request) { return Found(link: link, place: place) }
        list = lists.nonEmpty(from: here + 1)
      }
      left = Self.quickLook
    }
    var list = lists.nonEmpty(from: own)
    while let here = list, here < end {
      visited += 1
      var link = lists.head[here]
      while link != .none {
        guard left > 0 else { return nil }
        left -= 1
        if let place = look(at: link, request) { return Found(link: link, place: place) }
        link = links[link].pointee.next
      }
      list = lists.nonEmpty(from: here + 1)
    }
    return nil
  }

  enum Step {
    case found(Found)
    case exhausted
    /// The budget is used up; the cursor knows the place.
    case more
  }

  /// Goes on with a pass over all lists that could hold the request, from the cursor's place.
  mutating func step(
    _ cursor: UnsafeMutablePointer<FreeLists.Cursor>, _ request: Request, _ policy: FitPolicy
  ) -> Step {
    var left = Self.searchBudget
    while true {
      var link = cursor.pointee.next
      while link != .none {
        guard left > 0 else {
          cursor.pointee.next = link
          return .more
        }
        left -= 1
        if let place = look(at: link, request) {
          let extent = links[link].pointee.extent
          if policy == .instantFit || extent >> shift == request.quanta - 1 {
            return .found(Found(link: link, place: place))
          }
          if cursor.pointee.best == .none || extent < links[cursor.pointee.best].pointee.extent {
            cursor.pointee.best = link
          }
          // A class of one size has no smaller member.
          if cursor.pointee.list < 16 { break }
        }
        link = links[link].pointee.next
      }
      cursor.pointee.next = .none
      let best = cursor.pointee.best
      if best != .none, let place = look(at: best, request) { return .found(Found(link: best, place: place)) }
      guard left > 0, let list = lists.nonEmpty(from: cursor.pointee.list + 1) else {
        return left > 0 ? .exhausted : .more
      }
      visited += 1
      left -= 1
      cursor.pointee.list = list
      cursor.pointee.next = lists.head[list]
    }
  }

  // MARK: Largest free segment

  /// One step of the pass for the largest free segment. Its extent, or nil while the pass goes on.
  mutating func stepLargest(_ cursor: UnsafeMutablePointer<FreeLists.Cursor>) -> UInt64? {
    if lists.largestIsKnown { return lists.largest }
    guard let highest = lists.highest else { return nil }
    if cursor.pointee.list != highest || cursor.pointee.isDisturbed || cursor.pointee.best == .none {
      cursor.pointee.list = highest
      cursor.pointee.next = lists.head[highest]
      cursor.pointee.best = lists.head[highest]
      cursor.pointee.isDisturbed = false
    }
    var left = Self.searchBudget
    while cursor.pointee.next != .none, left > 0 {
      left -= 1
      let link = cursor.pointee.next
      if links[link].pointee.extent > links[cursor.pointee.best].pointee.extent { cursor.pointee.best = link }
      cursor.pointee.next = highest < 16 ? .none : links[link].pointee.next
    }
    guard cursor.pointee.next == .none else { return nil }
    lists.largest = links[cursor.pointee.best].pointee.extent
    lists.largestIsKnown = true
    return lists.largest
  }

  // MARK: Walking

  mutating func register(_ walker: UnsafeMutablePointer<Walker>) {
    walker.pointee.nextWalker = walkers
    walkers = walker
  }

  mutating func unregister(_ walker: UnsafeMutablePointer<Walker>) {
    if walkers == walker {
      walkers = walker.pointee.nextWalker
      return
    }
    var place = walkers
    while let here = place {
      if here.pointee.nextWalker == walker {
        here.pointee.nextWalker = walker.pointee.nextWalker
        return
      }
      place = here.pointee.nextWalker
    }
  }
}
