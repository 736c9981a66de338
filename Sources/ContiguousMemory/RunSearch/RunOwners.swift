// The owners of the frames that keep a run from being emptied, and how many frames each has there.
//
// Eight owners are kept. Where there are more, the table keeps each owner that has more than a ninth of the frames in
// the way (Misra and Gries, "Finding repeated elements", 1982). A second walk counts the frames of these.

import MemoryPrimitives
import PhysicalMemory

/// An owner of frames in the way of a run: a role, and the object, cache or other owner that its records name.
package struct RunOwner: Equatable, Sendable {
  /// The role of the frames.
  package var role: FrameRole
  /// The owner's number in their records.
  package var owner: UInt32
  /// How many frames in the way it has.
  package var frames: PageCount
  /// The lowest of them.
  package var first: FrameNumber

  func isSame(as other: FrameDescription) -> Bool { role == other.role && owner == other.owner }
}

/// The owners of the frames in the way of a run, the one with most frames first; eight at most.
package struct RunOwners: Sendable {
  /// The owners; nil from `count` on.
  package internal(set) var list: InlineArray<8, RunOwner?> = .init(repeating: nil)
  /// Owners in `list`.
  package internal(set) var count = 0
  /// Frames in the way, those of other owners included.
  package internal(set) var frames = PageCount.zero

  /// No owners.
  init() {}

  /// The owner of most of them.
  package var first: RunOwner? { list[0] }

  /// Counts a frame, if the table has a slot for its owner.
  fileprivate mutating func add(_ what: FrameDescription) -> Counted {
    for i in 0..<count {
      guard var known = list[i], known.isSame(as: what) else { continue }
      known.frames += .one
      list[i] = known
      return .counted
    }
    guard count < 8 else { return .tableFull }
    list[count] = RunOwner(role: what.role, owner: what.owner, frames: .one, first: what.frame)
    count += 1
    return .counted
  }

  fileprivate enum Counted { case counted, tableFull }

  /// Subtracts a frame from each, and removes those that have none left.
  fileprivate mutating func discount() {
    var kept = 0
    for i in 0..<count {
      guard var known = list[i], known.frames > .one else { continue }
      known.frames -= .one
      list[kept] = known
      kept += 1
    }
    for i in kept..<count { list[i] = nil }
    count = kept
  }

  fileprivate mutating func sort() {
    for i in 0..<count {
      guard let one = list[i] else { continue }
      var k = i
      while k > 0, let before = list[k - 1],
        before.frames < one.frames || (before.frames == one.frames && one.first < before.first)
      {
        list[k] = before
        k -= 1
      }
      list[k] = one
    }
  }
}

/// A reason why a frame is in the way of a run.
enum InTheWay {
  /// The frame is unmovable.
  case unmovable
  /// It is a page that is held or busy at this moment.
  case claimed
}

extension FrameAllocator {
  /// Lists the owners of the frames in the way of `run`. Reads each frame, some hundred instructions for each in the
  /// way; walks a second time where there are more than eight owners. Captured frames are not in the way.
  func owners(of run: FrameRun, _ kind: InTheWay) -> RunOwners {
    var owners = RunOwners()
    var isWhole = true
    forEachFrame(of: run, kind) { what in
      owners.frames += .one
      if owners.add(what) == .tableFull {
        isWhole = false
        owners.discount()
      }
    }
    if !isWhole {
      for i in 0..<owners.count {
        owners.list[i]?.frames = .zero
        owners.list[i]?.first = .none
      }
      forEachFrame(of: run, kind) { what in
        for i in 0..<owners.count {
          guard var known = owners.list[i], known.isSame(as: what) else { continue }
          if known.frames == .zero { known.first = what.frame }
          known.frames += .one
          owners.list[i] = known
        }
      }
    }
    owners.sort()
    return owners
  }

  private func forEachFrame(of run: FrameRun, _ kind: InTheWay, _ body: (FrameDescription) -> Void) {
    var at = run.first
    while at < run.end {
      let what = whatIs(at)
      at = at + .one
      if what.role == .free || (what.role == .contiguous && what.busyWord == .captured) { continue }
      let isPage = what.role == .zspage || (what.role == .pageable && what.busyWord.wires == 0)
      let isClaimed =
        isPage && what.role == .pageable && what.busyWord.rawValue & ~BusyWord.waiters.rawValue != 0
      switch kind {
      case .unmovable: if !isPage { body(what) }
      case .claimed: if isClaimed { body(what) }
      }
    }
  }
}
