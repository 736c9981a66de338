// The data of an arena under its lock: spans, segments, spare tags, and the operations on them that make no upcall.
// They call nothing outside this file's types but the supply of tags, whose lock ranks above.

import MemoryPrimitives

/// Tags that an arena keeps. An operation secures the tags that it may need here before it starts.
struct SpareTags {
  var first = Link.none
  var count: UInt32 = 0
  /// Of these, the tags secured by operations that dropped the lock: no other operation may use them.
  var hidden: UInt32 = 0
  /// An operation found too few while some were hidden. Its thread perhaps sleeps and is woken when they are returned.
  var wereMissed = false

  /// Above this many unhidden spares, those beyond half of it return to the supply. Few, because each of
  /// them may keep a page of tags from being freed.
  static var most: UInt32 { 8 }

  var available: UInt32 { count - hidden }
}

/// The fields of a walker, in place.
extension UnsafeMutablePointer<ArenaCore.Walker> {
  var span: Link {
    get { pointee.span }
    nonmutating set { pointee.span = newValue }
  }
  var segment: Link {
    get { pointee.segment }
    nonmutating set { pointee.segment = newValue }
  }
  var nextWalker: Self? {
    get { pointee.nextWalker }
    nonmutating set { pointee.nextWalker = newValue }
  }
}

struct ArenaCore: ~Copyable {
  /// Tags that a pass examines in one hold of the lock: about 15 instructions each.
  static var searchBudget: UInt32 { 512 }
  /// How often a pass starts again because other callers added segments to the lists behind it.
  static var searchRounds: UInt32 { 8 }
  /// Tags that instant fit examines, beyond heads, before the arena asks the source.
  static var instantBudget: UInt32 { 32 }
  /// Spans, and buckets of the hash, that one hold of the lock takes apart.
  static var dismantledAtOnce: Int { 16 }

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
  var waiters = ArenaWaiters()
  /// Lists and tags that were examined.
  var visited: UInt64 = 0

  /// The position of a walk while the lock is dropped. When its tag is removed, it moves on.
  struct Walker {
    /// The span to visit after the segments of the present one.
    var span = Link.none
    var segment = Link.none
    var nextWalker: UnsafeMutablePointer<Walker>?
  }

  // MARK: Spare tags

  /// Makes `count` spares available, from the supply's tags. Answers false when the supply must grow first.
  mutating func secure(_ count: UInt32) -> Bool {
    if spares.available >= count { return true }
    add(tags.state.pool.withLock { $0.allocate(SpareTags.most / 2) })
    if spares.available >= count { return true }
    if spares.hidden != 0 { spares.wereMissed = true }
    return false
  }

  private mutating func add(_ chain: TagChain) {
    var tag = chain.first
    while tag != .none {
      let next = links[tag].next
      addSpare(tag)
      tag = next
    }
  }

  private mutating func popSpare() -> Link {
    precondition(spares.available > 0, "a tag was needed that no operation secured")
    let tag = spares.first
    spares.first = links[tag].next
    spares.count -= 1
    return tag
  }

  private mutating func addSpare(_ tag: Link) {
    links[tag].kind = .unused
    links[tag].next = spares.first
    spares.first = tag
    spares.count += 1
  }

  /// Returns surplus spares to the supply, or all for `keeping` zero. Answers whether there were any.
  mutating func returnSpares(keeping: UInt32 = SpareTags.most / 2) -> Bool {
    guard keeping == 0 ? spares.available > 0 : spares.available > SpareTags.most else { return false }
    var chain = TagChain.empty
    while spares.available > keeping {
      let tag = popSpare()
      links[tag].next = chain.first
      chain.first = tag
      chain.count += 1
    }
    tags.state.pool.withLock { $0.free(chain) }
    return true
  }

  // MARK: Spans

  /// Adds a span as one free segment, which is on no list yet, and returns the segment. Uses two secured tags.
  mutating func addSpan(_ kind: TagKind, _ start: UInt64, _ last: UInt64) -> Link {
    let span = popSpare()
    let segment = popSpare()
    links[span].set(kind, start, last)
    links[segment].set(.free, start, last)
    links[span].nextSegment = segment
    links[segment].previousSegment = span
    links[span].previous = lastSpan
    if lastSpan == .none { firstSpan = span } else { links[lastSpan].next = span }
    lastSpan = span
    spans += 1
    total &+= last &- start &+ 1
    return segment
  }

  /// Removes a span whose one segment is free and on no list.
  mutating func removeSpan(_ span: Link, _ segment: Link) {
    let tag = links[span]
    let (previous, next) = (tag.previous, tag.next)
    if previous == .none { firstSpan = next } else { links[previous].next = next }
    if next == .none { lastSpan = previous } else { links[next].previous = previous }
    spans -= 1
    total &-= tag.extent &+ 1
    var walker = walkers
    while let here = walker {
      if here.span == span { here.span = next }
      if here.segment == segment { here.segment = .none }
      walker = here.nextWalker
    }
    addSpare(segment)
    addSpare(span)
  }

  // MARK: Segments

  private func insertSegment(_ link: Link, after previous: Link) {
    let next = links[previous].nextSegment
    links[link].previousSegment = previous
    links[link].nextSegment = next
    links[previous].nextSegment = link
    if next != .none { links[next].previousSegment = link }
  }

  private mutating func removeSegment(_ link: Link) {
    let (previous, next) = (links[link].previousSegment, links[link].nextSegment)
    links[previous].nextSegment = next
    if next != .none { links[next].previousSegment = previous }
    var walker = walkers
    while let here = walker {
      if here.segment == link { here.segment = next }
      walker = here.nextWalker
    }
    addSpare(link)
  }

  /// Makes `start ... last` of the free segment `link`, which is on no list, busy. Uses a secured tag for
  /// each remainder.
  mutating func carve(_ link: Link, _ start: UInt64, _ last: UInt64, _ site: CallSite) {
    let tag = links[link]
    if tag.start < start {
      let left = popSpare()
      links[left].set(.free, tag.start, start - 1)
      insertSegment(left, after: tag.previousSegment)
      lists.insert(left)
    }
    if tag.last > last {
      let right = popSpare()
      links[right].set(.free, last + 1, tag.last)
      insertSegment(right, after: link)
      lists.insert(right)
    }
    tag.start = start
    tag.last = last
    tag.kind = .busy
    tag.callSite = site
    hash.insert(link)
    allocated &+= last &- start &+ 1
  }

  /// The work of a free that needs the lock dropped.
  struct DeferredWork {
    /// An imported span to return to the source.
    var released: (start: UInt64, last: UInt64)?
    /// Pages that the hash no longer needs, to be freed.
    var pages = Link.none
    /// Whether the supply got tags back, and may have pages to free.
    var returnedTags = false
    /// Waiters that the free served.
    var serving = Serving()
    /// Whether the supply had any waiter.
    var hadWaiters = false
  }

  /// Makes a busy segment free and joins it with its neighbours. Serves waiters from it, if there are any.
  mutating func release(_ busy: BusyHash.Position, hasWaiters: Bool) -> DeferredWork {
    var work = DeferredWork()
    work.hadWaiters = hasWaiters
    hash.remove(busy)
    let tag = links[busy.link]
    allocated &-= tag.extent &+ 1
    var link = busy.link
    tag.kind = .free
    let next = tag.nextSegment
    if next != .none, links[next].kind == .free {
      lists.remove(next)
      tag.last = links[next].last
      removeSegment(next)
    }
    let previous = tag.previousSegment
    if links[previous].kind == .free {
      lists.remove(previous)
      links[previous].last = tag.last
      removeSegment(link)
      link = previous
    }
    let before = links[link].previousSegment
    let isWhole = links[before].kind == .imported && links[link].nextSegment == .none
    if isWhole, !hasWaiters {
      work.released = (links[link].start, links[link].last)
      removeSpan(before, link)
    } else {
      lists.insert(link)
      if hasWaiters { serve(afterFreeing: link, isWhole: isWhole, &work) }
    }
    work.pages = hash.shrink()
    work.returnedTags = returnSpares()
    return work
  }

  // MARK: Searching

  /// A free segment and where in it the request begins.
  struct Found {
    var link: Link
    var start: UInt64
  }

  /// Removes the found segment from its list and cuts the request out of it.
  mutating func allocate(_ found: Found, _ request: Request, _ site: CallSite) {
    lists.remove(found.link)
    carve(found.link, found.start, found.start + request.extent, site)
  }

  mutating func lowestStart(in link: Link, _ request: Request) -> UInt64? {
    visited += 1
    return request.lowestStart(in: links[link].start, links[link].last)
  }

  /// Finds a segment by instant fit. The first candidate is the head of the first list whose members all suffice.
  /// With constraints that size alone can't answer, it is the head of each list above the request's class. Then come a few
  /// members of the lists below, which may or may not fit.
  mutating func findInstantly(_ request: Request) -> Found? {
    let own = FreeLists.index(quanta: request.quanta)
    var left = Self.instantBudget
    var end = FreeLists.classes
    if let sufficient = request.sufficientClass {
      end = sufficient
      visited += 1
      if let list = lists.nonEmpty(from: sufficient) {
        let link = lists.head[list]
        if let start = lowestStart(in: link, request) { return Found(link: link, start: start) }
      }
    } else {
      var list = lists.nonEmpty(from: min(own + 1, FreeLists.classes))
      while let here = list, left > 0 {
        left -= 1
        visited += 1
        let link = lists.head[here]
        if let start = lowestStart(in: link, request) { return Found(link: link, start: start) }
        list = lists.nonEmpty(from: here + 1)
      }
      left = Self.instantBudget
    }
    var list = lists.nonEmpty(from: own)
    while let here = list, here < end {
      visited += 1
      var link = lists.head[here]
      while link != .none {
        guard left > 0 else { return nil }
        left -= 1
        if let start = lowestStart(in: link, request) { return Found(link: link, start: start) }
        link = links[link].next
      }
      list = lists.nonEmpty(from: here + 1)
    }
    return nil
  }

  enum Step {
    case found(Found)
    case exhausted
    /// The budget is used up; the cursor has the position.
    case more
  }

  /// Continues a pass over all lists that could hold the request, from the cursor's position.
  mutating func step(
    _ cursor: UnsafeMutablePointer<FreeLists.Cursor>, _ request: Request, _ policy: FitPolicy
  ) -> Step {
    var left = Self.searchBudget
    while true {
      var link = cursor.next
      while link != .none {
        guard left > 0 else {
          cursor.next = link
          return .more
        }
        left -= 1
        if let start = lowestStart(in: link, request) {
          let extent = links[link].extent
          if policy == .instantFit || extent >> shift == request.quanta - 1 {
            return .found(Found(link: link, start: start))
          }
          if cursor.best == .none || extent < links[cursor.best].extent {
            cursor.best = link
          }
          // A class of one size has no smaller member.
          if cursor.list < FreeLists.exactClasses { break }
        }
        link = links[link].next
      }
      cursor.next = .none
      let best = cursor.best
      if best != .none, let start = lowestStart(in: best, request) {
        return .found(Found(link: best, start: start))
      }
      guard left > 0, let list = lists.nonEmpty(from: cursor.list + 1) else {
        return left > 0 ? .exhausted : .more
      }
      visited += 1
      left -= 1
      cursor.list = list
      cursor.next = lists.head[list]
    }
  }

  // MARK: Largest free segment

  /// Continues the pass for the largest free segment. Answers its extent, or nil while the pass is not done.
  mutating func stepLargest(_ cursor: UnsafeMutablePointer<FreeLists.Cursor>) -> UInt64? {
    if lists.largestIsKnown { return lists.largest }
    guard let highest = lists.highest else { return nil }
    if cursor.list != highest || cursor.isDisturbed || cursor.best == .none {
      cursor.list = highest
      cursor.next = lists.head[highest]
      cursor.best = lists.head[highest]
      cursor.isDisturbed = false
    }
    var left = Self.searchBudget
    while cursor.next != .none, left > 0 {
      left -= 1
      let link = cursor.next
      if links[link].extent > links[cursor.best].extent { cursor.best = link }
      cursor.next = highest < FreeLists.exactClasses ? .none : links[link].next
    }
    guard cursor.next == .none else { return nil }
    lists.largest = links[cursor.best].extent
    lists.largestIsKnown = true
    return lists.largest
  }

  // MARK: Walking

  mutating func register(_ walker: UnsafeMutablePointer<Walker>) {
    walker.nextWalker = walkers
    walkers = walker
  }

  mutating func unregister(_ walker: UnsafeMutablePointer<Walker>) {
    if walkers == walker {
      walkers = walker.nextWalker
      return
    }
    var other = walkers
    while let here = other {
      if here.nextWalker == walker {
        here.nextWalker = walker.nextWalker
        return
      }
      other = here.nextWalker
    }
  }
}
