// Inspection of an arena: walk, find, description of a segment.
//
// A walker is in the arena's list of walkers while the lock is dropped, and moves on when the tag that it points to is
// removed. So the body of a walk may call anything, the arena included. Each segment that it gets was as described
// under the lock, a moment before.

import MemoryPrimitives

/// A segment or span of an arena.
package struct Segment: Equatable, Sendable {
  /// Segments are free or busy; spans were added or imported.
  package enum Kind: UInt8, Sendable {
    case free
    case busy
    /// A span that was added.
    case addedSpan
    /// A span that was imported.
    case importedSpan
  }
  /// The first value in it.
  package var first: ArenaAddress
  /// The last value in it.
  package var last: ArenaAddress
  /// Whether it is a segment or a span, and which.
  package var kind: Kind
  /// The call site that allocated a busy segment.
  package var allocatedAt: CallSite

  /// Values in it; 2^64 reads as `ArenaSize.everything`.
  package var size: ArenaSize {
    let extent = last.rawValue - first.rawValue
    return extent == UInt64.max ? .everything : ArenaSize(extent + 1)
  }

  init(_ tag: TagPointer) {
    first = ArenaAddress(tag.start)
    last = ArenaAddress(tag.last)
    switch tag.kind {
    case .busy: kind = .busy
    case .added: kind = .addedSpan
    case .imported: kind = .importedSpan
    case .free, .unused: kind = .free
    }
    allocatedAt = tag.kind == .busy ? tag.callSite : .unknown
  }
}

extension Arena {
  /// Visits every span, and after each span its segments in the order of their values. Spans come in the order in which
  /// they were added or imported. No lock is held while `visit` runs. Exact when no other call uses the arena; else a
  /// change during the walk may be seen or not, and segments that join may be missed.
  package func walk<E>(_ visit: (Segment) throws(E) -> Void) throws(E) {
    var walker = ArenaCore.Walker()
    try withUnsafeMutablePointer(to: &walker) { walker throws(E) in
      state.core.withLock { core in
        walker.span = core.firstSpan
        core.register(walker)
      }
      defer { state.core.withLock { $0.unregister(walker) } }
      while let segment = state.core.withLock({ $0.advance(walker) }) { try visit(segment) }
    }
  }

  /// Finds the segment that holds `address`; nil when no span does. Constant time for the first value of a busy
  /// segment, a pass over the spans and over one span's segments otherwise.
  package func find(_ address: ArenaAddress) -> Segment? {
    let busy = state.core.withLock { core -> Segment? in
      let link = core.hash.find(address.rawValue)
      return link == .none ? nil : Segment(core.links[link])
    }
    if let busy { return busy }
    var walker = ArenaCore.Walker()
    return withUnsafeMutablePointer(to: &walker) { walker in
      state.core.withLock { core in
        walker.span = core.firstSpan
        core.register(walker)
      }
      defer { state.core.withLock { $0.unregister(walker) } }
      while true {
        let (segment, isDone) = state.core.withLock { $0.seek(address.rawValue, walker) }
        if isDone { return segment }
      }
    }
  }
}

extension ArenaCore {
  /// Advances a walk, and answers the segment or span that it passes.
  func advance(_ walker: UnsafeMutablePointer<Walker>) -> Segment? {
    if walker.segment != .none {
      let tag = links[walker.segment]
      walker.segment = tag.nextSegment
      return Segment(tag)
    }
    guard walker.span != .none else { return nil }
    let span = links[walker.span]
    walker.span = span.next
    walker.segment = span.nextSegment
    return Segment(span)
  }

  /// Continues to look for the segment that holds an address. Answers it, and whether the answer is final.
  func seek(_ address: UInt64, _ walker: UnsafeMutablePointer<Walker>) -> (Segment?, Bool) {
    for _ in 0..<Self.searchBudget {
      if walker.segment != .none {
        let tag = links[walker.segment]
        if tag.start <= address, address <= tag.last { return (Segment(tag), true) }
        walker.segment = tag.nextSegment
      } else if walker.span != .none {
        let span = links[walker.span]
        walker.span = span.next
        if span.start <= address, address <= span.last {
          walker.segment = span.nextSegment
        }
      } else {
        return (nil, true)
      }
    }
    return (nil, false)
  }
}
