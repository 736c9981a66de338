// A naive model of physical memory: one role a frame, and brute force.

import PhysicalMemory

/// The model: the role of each frame, and nothing of blocks.
package struct FrameModel {
  package var roles: [FrameRole]

  package init(_ system: FrameAllocatorFixture) { roles = system.roles }

  package var free: UInt64 { UInt64(roles.reduce(0) { $0 + ($1 == .free ? 1 : 0) }) }

  package func isFree(_ first: Int, _ count: Int) -> Bool {
    first + count <= roles.count && (first..<first + count).allSatisfy { roles[$0] == .free }
  }

  package func hasBlock(_ order: Int) -> Bool {
    stride(from: 0, to: roles.count, by: 1 << order).contains { isFree($0, 1 << order) }
  }

  package func allows(_ first: Int, _ count: Int, _ where: RunConstraints) -> Bool {
    let (from, to) = (UInt64(first) << 12, UInt64(first + count) << 12)
    guard from >= `where`.low.rawValue, to <= `where`.high.rawValue,
      from % `where`.alignment.rawValue == 0
    else { return false }
    guard let boundary = `where`.boundary?.rawValue else { return true }
    return from / boundary == (to - 1) / boundary
  }

  package func hasRun(_ count: Int, _ where: RunConstraints) -> Bool {
    var length = 0
    for frame in 0..<roles.count {
      length = roles[frame] == .free ? length + 1 : 0
      if length >= count, allows(frame - count + 1, count, `where`) { return true }
    }
    return false
  }

  package func longestRun() -> Int {
    var (best, length) = (0, 0)
    for role in roles {
      length = role == .free ? length + 1 : 0
      best = max(best, length)
    }
    return best
  }

  package mutating func set(_ first: Int, _ count: Int, _ role: FrameRole) {
    for frame in first..<first + count { roles[frame] = role }
  }
}
