// Looking into an arena: walk, find, description of a segment.
//
// A walker stands in the arena's list of walkers while the lock is dropped, and moves on when the tag
// that it points to goes. So a visitor may do what it likes, the arena included; what it is told was true
// under the lock a moment ago.

import MemoryPrimitives

/// A segment or span of an arena.
public struct Segment: Equatable, Sendable {
  public enum Kind: UInt8, Sendable {
    case free
    case busy
    /// A span that was added.
    case addedSpan
    /// A span that was imported.
    case importedSpan
  }
  public var first: ArenaAddress
  /// Inclusive.
  public var last: ArenaAddress
  public var kind: Kind
  /// Who allocated it, for a busy segment.
  public var allocatedAt: CallSite

  /// Values in it; 2^64 reads as `ArenaSize.everything`.
  public var size: ArenaSize {
    let extent = last.rawValue - first.rawValue
    return extent == UInt64.max ? .everything : ArenaSize(extent + 1)
  }

  init(_ tag: borrowing Tag) {
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
  /// Visits every span and behind it its segments in the order of their values; spans in the order in which
  /// they came. No lock is held while `visit` runs. Exact when nothing else uses the arena; otherwise what
  /// changes during the walk may be seen before or after, or missed where segments join.
  public func walk<E>(_ visit: (Segment) throws(E) -> Void) throws(E) {
    var walker = ArenaCore.Walker()
    try withUnsafeMutablePointer(to: &walker) { walker throws(E) in
      state.pointee.core.withLock { core in
        walker.pointee.span = core.firstSpan
        core.register(walker)
      }
      defer { state.pointee.core.withLock { $0.unregister(walker) } }
      while let segment = state.pointee.core.withLock({ $0.advance(walker) }) { try visit(segment) }
    }
  }

  /// The segment that holds `address`, or nil when no span does. Constant time for the first value of a busy
  /// segment, a pass over the spans and over one span's segments otherwise.
  public func find(_ address: ArenaAddress) -> Segment? {
    let busy = state.pointee.core.withLock { core -> Segment? in
      let link = core.hash.find(address.rawValue)
      return link == .none ? nil : Segment(core.links[link].pointee)
    }
    if let busy { return busy }
    var walker = ArenaCore.Walker()
    return withUnsafeMutablePointer(to: &walker) { walker in
      state.pointee.core.withLock { core in
        walker.pointee.span = core.firstSpan
        core.register(walker)
      }
      defer { state.pointee.core.withLock { $0.unregister(walker) } }
      while true {
        let (segment, isDone) = state.pointee.core.withLock { $0.seek(address.rawValue, walker) }
        if isDone { return segment }
      }
    }
  }
}

extension ArenaCore {
  /// The next segment or span of a walk.
  func advance(_ walker: UnsafeMutablePointer<Walker>) -> Segment? {
    if walker.pointee.segment != .none {
      let tag = links[walker.pointee.segment]
      walker.pointee.segment = tag.pointee.nextSegment
      return Segment(tag.pointee)
    }
    guard walker.pointee.span != .none else { return nil }
    let span = links[walker.pointee.span]
    walker.pointee.span = span.pointee.next
    walker.pointee.segment = span.pointee.nextSegment
    return Segment(span.pointee)
  }

  /// Goes on looking for the segment that holds an address: what was found, and whether that is final.
  func seek(_ address: UInt64, _ walker: UnsafeMutablePointer<Walker>) -> (Segment?, Bool) {
    for _ in 0..<Self.searchBudget {
      if walker.pointee.segment != .none {
        let tag = links[walker.pointee.segment]
        if tag.pointee.start <= address, address <= tag.pointee.last { return (Segment(tag.pointee), true) }
        walker.pointee.segment = tag.pointee.nextSegment
      } else if walker.pointee.span != .none {
        let span = links[walker.pointee.span]
        walker.pointee.span = span.pointee.next
        if span.pointee.start <= address, address <= span.pointee.last {
          walker.pointee.segment = span.pointee.nextSegment
        }
      } else {
        return (nil, true)
      }
    }
    return (nil, false)
  }
}
