// A doubly linked list whose members hold the links: no memory is needed to put one in, and removal is constant.
//
// The list keeps its two ends and its length. The caller decides where a member's links lie: in a frame record, on a
// sleeper's stack, in a request. So each operation takes the caller's `ListLinks`, which the compiler folds away.
// A member is in one list at a time. The lock of the list's owner guards the list and the links.

/// A value that names a member of a list, or none.
@usableFromInline package protocol ListLink: Equatable {
  static var none: Self { get }
}

/// Access to the links of a list's members.
@usableFromInline package protocol ListLinks<Link> {
  associatedtype Link: ListLink
  func next(of member: Link) -> Link
  func previous(of member: Link) -> Link
  func setNext(of member: Link, to link: Link)
  func setPrevious(of member: Link, to link: Link)
}

/// The ends and the length of a doubly linked list.
@frozen @usableFromInline package struct IntrusiveList<Link: ListLink> {
  @usableFromInline package private(set) var first = Link.none
  @usableFromInline package private(set) var last = Link.none
  @usableFromInline package private(set) var count: UInt64 = 0

  @inlinable package init() {}

  @inlinable package var isEmpty: Bool { first == .none }

  /// Adds a member that is in no list, at the back.
  @inlinable @inline(__always)
  package mutating func append(_ member: Link, in links: borrowing some ListLinks<Link>) {
    links.setPrevious(of: member, to: last)
    links.setNext(of: member, to: .none)
    if last == .none { first = member } else { links.setNext(of: last, to: member) }
    last = member
    count &+= 1
  }

  /// Adds a member that is in no list, at the front.
  @inlinable @inline(__always)
  package mutating func prepend(_ member: Link, in links: borrowing some ListLinks<Link>) {
    links.setPrevious(of: member, to: .none)
    links.setNext(of: member, to: first)
    if first == .none { last = member } else { links.setPrevious(of: first, to: member) }
    first = member
    count &+= 1
  }

  /// Removes a member of this list. Its own links keep their values.
  @inlinable @inline(__always)
  package mutating func remove(_ member: Link, in links: borrowing some ListLinks<Link>) {
    let (next, previous) = (links.next(of: member), links.previous(of: member))
    if previous == .none { first = next } else { links.setNext(of: previous, to: next) }
    if next == .none { last = previous } else { links.setPrevious(of: next, to: previous) }
    count &-= 1
  }

  /// Removes and returns the first member; `none` when the list is empty.
  @inlinable @inline(__always)
  package mutating func popFirst(in links: borrowing some ListLinks<Link>) -> Link {
    let member = first
    if member != .none { remove(member, in: links) }
    return member
  }

  /// Puts `member`, which is in no list, in the position of `other`, which is in no list afterwards.
  @inlinable @inline(__always)
  package mutating func replace(_ other: Link, by member: Link, in links: borrowing some ListLinks<Link>) {
    let (next, previous) = (links.next(of: other), links.previous(of: other))
    links.setNext(of: member, to: next)
    links.setPrevious(of: member, to: previous)
    if previous == .none { first = member } else { links.setNext(of: previous, to: member) }
    if next == .none { last = member } else { links.setPrevious(of: next, to: member) }
  }
}

extension FrameNumber: ListLink {}
