// The waiters of an arena and the order in which space is given to them.
//
// A waiter is a few words on the sleeper's stack, linked into its arena's list in order of arrival, under the arena's
// lock. Boundary tags for its segment are hidden among the spares while it waits, so that serving it can't fail.
//
// THE RULE: space that becomes free is offered to the waiters before any other request sees it, in order of arrival,
// each with its own constraints. The first one that it satisfies gets its segment at once, the next ones share the
// remainder. A waiter that the space doesn't satisfy holds up no other one, so later waiters for less may go first.
// So no free segment satisfies a waiter (VM-10), and a newcomer, which may take any free segment, overtakes none.
//
// A request becomes a waiter when it joins, and then searches the arena itself, once: space may have become free since
// its last try. Until the search is over, newcomers compete with it, but it gets their remainders if they satisfy it.
//
// TAGS: a waiter without tags keeps its position. Each free in its arena, and each newcomer, first gives it what there
// is. It also tries again itself after a free in any arena of the supply.
//
// IMPORT: a waiter of an arena that imports from another one waits in that one too, for a span of its size: so the
// waiters of a source and of all arenas that import from it are in one order. An imported span that becomes wholly
// free belongs to the source, and returns there. Only waiters that are not queued there are served before. A source
// made of functions reports no free. The waiters of its arena ask it again after each free in the supply.

import MemoryPrimitives

/// A thread that waits for a segment.
struct ArenaWaiter {
  let arena: Arena
  let request: Request
  let site: CallSite
  let tagsNeeded: UInt32
  /// The same thread's waiter in the arena that imports for it.
  let below: ArenaWaiterLink
  /// Tags that are hidden for it: all that it needs, or none.
  var tags: UInt32 = 0
  /// Whether its own search is over.
  var isSettled = false
  /// Whether the thread waits in the source too.
  var isQueuedAbove = false
  /// The first value of the segment that it got. Once it is set, the waiter is in no list.
  var start: UInt64?
  var next = ArenaWaiterLink.none
  var previous = ArenaWaiterLink.none

  init(_ arena: Arena, _ attempt: AllocationAttempt, below: ArenaWaiterLink) {
    (self.arena, self.below) = (arena, below)
    (request, site, tagsNeeded) = (attempt.request, attempt.site, attempt.tagsNeeded)
  }
}

/// A waiter, or none.
struct ArenaWaiterLink: ListLink {
  var pointer: UnsafeMutablePointer<ArenaWaiter>?
  static var none: Self { Self(pointer: nil) }
  var waiter: UnsafeMutablePointer<ArenaWaiter> { pointer.unsafelyUnwrapped }
}

/// The links of a waiter lie in it.
struct ArenaWaiterLinks: ListLinks {
  func next(of member: ArenaWaiterLink) -> ArenaWaiterLink { member.waiter.pointee.next }
  func previous(of member: ArenaWaiterLink) -> ArenaWaiterLink { member.waiter.pointee.previous }
  func setNext(of member: ArenaWaiterLink, to link: ArenaWaiterLink) { member.waiter.pointee.next = link }
  func setPrevious(of member: ArenaWaiterLink, to link: ArenaWaiterLink) {
    member.waiter.pointee.previous = link
  }
}

/// The waiters of one arena, in order of arrival.
struct ArenaWaiters {
  private var list = IntrusiveList<ArenaWaiterLink>()
  /// Those whose own search is not over: they may lack tags, and a free segment may satisfy them.
  private(set) var unsettled: UInt64 = 0

  @inline(always) var first: ArenaWaiterLink { list.first }
  @inline(always) var isEmpty: Bool { list.isEmpty }
  var count: UInt64 { list.count }

  mutating func join(_ link: ArenaWaiterLink) {
    list.append(link, in: ArenaWaiterLinks())
    unsettled += 1
  }

  mutating func settle(_ link: ArenaWaiterLink) {
    guard link.waiter.pointee.start == nil, !link.waiter.pointee.isSettled else { return }
    link.waiter.pointee.isSettled = true
    unsettled -= 1
  }

  mutating func remove(_ link: ArenaWaiterLink) {
    list.remove(link, in: ArenaWaiterLinks())
    if !link.waiter.pointee.isSettled { unsettled -= 1 }
  }
}

/// The segments that lie after `before`, a span or a busy segment, up to the value `last`: one free segment at first,
/// of which waiters are served.
struct FreshSpace {
  let before: Link
  let last: UInt64
}

/// The waiters that an operation served.
struct Serving {
  /// Segments that were given to waiters.
  var segments: UInt64 = 0
  /// Whether any waiter got a segment or tags: the caller wakes them with the lock dropped.
  var mustWake = false

  static func += (all: inout Self, more: Self) {
    all.segments += more.segments
    all.mustWake = all.mustWake || more.mustWake
  }
}

extension ArenaCore {
  /// Hides tags for a waiter that has none. Answers whether it has them.
  mutating func secure(for link: ArenaWaiterLink) -> Bool {
    let needed = link.waiter.pointee.tagsNeeded
    if link.waiter.pointee.tags == needed { return true }
    guard secure(needed) else { return false }
    spares.hidden += needed
    link.waiter.pointee.tags = needed
    return true
  }

  /// Removes a waiter, so that the caller may use its tags for the segment at `start`.
  mutating func conclude(_ link: ArenaWaiterLink, at start: UInt64) {
    waiters.remove(link)
    spares.hidden -= link.waiter.pointee.tags
    link.waiter.pointee.tags = 0
    link.waiter.pointee.start = start
  }

  /// Ends the hiding of an attempt's tags, which the caller uses for the segment at `start`.
  mutating func conclude(_ attempt: AllocationAttempt, at start: UInt64) {
    if attempt.waiter == .none {
      spares.hidden -= attempt.tagsNeeded
    } else {
      conclude(attempt.waiter, at: start)
    }
  }

  /// Ends the wait of a waiter. Answers the first value of its segment; nil when it was not served.
  mutating func leave(_ link: ArenaWaiterLink) -> UInt64? {
    if let start = link.waiter.pointee.start { return start }
    waiters.remove(link)
    spares.hidden -= link.waiter.pointee.tags
    return nil
  }

  /// Serves waiters in order of arrival from `space`, and gives tags to those that lack them. With `isReturning` the
  /// waiters that are queued in the source are left out. A step for each waiter, and one for each of its tries of a
  /// segment in the space.
  @inline(never) mutating func serve(from space: FreshSpace?, isReturning: Bool = false) -> Serving {
    var serving = Serving()
    var next = waiters.first
    while let pointer = next.pointer {
      let link = next
      next = pointer.pointee.next
      let hadTags = pointer.pointee.tags != 0
      guard !(isReturning && pointer.pointee.isQueuedAbove), secure(for: link) else { continue }
      if !hadTags { serving.mustWake = true }
      let request = pointer.pointee.request
      guard let found = smallest(in: space, request) else { continue }
      conclude(link, at: found.start)
      allocate(found, request, pointer.pointee.site)
      serving.segments += 1
      serving.mustWake = true
    }
    return serving
  }

  /// Finds the smallest free segment in `space` that satisfies a request.
  private mutating func smallest(in space: FreshSpace?, _ request: Request) -> Found? {
    guard let space else { return nil }
    var best: Found?
    var link = links[space.before].nextSegment
    while link != .none, links[link].start <= space.last {
      if links[link].kind == .free, let start = lowestStart(in: link, request),
        best.map({ links[link].extent < links[$0.link].extent }) ?? true
      {
        best = Found(link: link, start: start)
      }
      link = links[link].nextSegment
    }
    return best
  }

  /// Cuts the request out of the found segment, as `allocate` does, and offers the remainders to waiters that may not
  /// have seen the segment yet.
  @inline(never) mutating func allocateBesideWaiters(
    _ found: Found, _ request: Request, _ site: CallSite
  ) -> Serving {
    let space = FreshSpace(before: links[found.link].previousSegment, last: links[found.link].last)
    allocate(found, request, site)
    return serve(from: space)
  }

  /// Serves waiters from `link`, a free segment that a free made. `isWhole` says that it is all of an imported span,
  /// which leaves the arena if none of it is used.
  @inline(never) mutating func serve(afterFreeing link: Link, isWhole: Bool, _ work: inout DeferredWork) {
    let tag = links[link]
    let space = FreshSpace(before: tag.previousSegment, last: tag.last)
    let extent = (start: tag.start, last: tag.last)
    work.serving = serve(from: space, isReturning: isWhole)
    guard isWhole else { return }
    if work.serving.segments > 0 {
      // The remainder stays, for those that are queued in the source as well.
      work.serving += serve(from: space)
    } else {
      lists.remove(link)
      work.released = extent
      removeSpan(space.before, link)
    }
  }
}
