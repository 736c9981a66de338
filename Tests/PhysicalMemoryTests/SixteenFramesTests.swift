// Every sequence of six operations on 16 frames, against the roles of these frames and brute force.

import MemoryPrimitives
import TestSupport
import XCTest

@testable import PhysicalMemory

/// A machine of which 16 frames are free, the other ones wired, beside the list of their roles.
private struct SixteenFrames: SmallWorld {
  /// An allocation that lives: frames from the first of the 16, and its role.
  private struct Live {
    var first: Int
    var count: Int
  }

  private static let count = 16
  private static let first: UInt32 = 512
  /// A role for each request, so that frames of one are not taken for those of another.
  private static let requests: [FrameRole] = [.wired, .slab, .kmem, .contiguous]
  private static let runRequest = 3

  private let fixture: FrameAllocatorFixture
  private let memory: FrameAllocator
  private let start: TestSupport.FrameSnapshot
  private let constraints = RunConstraints(
    low: PhysicalAddress(UInt64(Self.first + 2) << 12), high: PhysicalAddress(UInt64(Self.first + 14) << 12),
    alignment: Alignment(2 << 12)!, boundary: Alignment(8 << 12)!)
  private var roles = [FrameRole](repeating: .free, count: Self.count)
  private var live: [Live] = []
  private(set) var granted = 0
  private(set) var refused = 0

  init() throws {
    // One pageblock, most of it a hole, because the check reads all of its frames. Records lie at its end.
    fixture = try FrameAllocatorFixture(
      frames: [(UInt64(Self.first), UInt64(Self.count)), (UInt64(Self.first) + 512 - 32, 32)])
    memory = fixture.memory
    try memory.setReserve(.zero, for: .normal)
    for frame in Self.first + 512 - 32..<Self.first + 512 {
      try? memory.allocate(frame: FrameNumber(frame), role: .wired, priority: .interrupt)
    }
    XCTAssertEqual(memory.freeCount.rawValue, UInt64(Self.count))
    start = TestSupport.FrameSnapshot(memory)
  }

  var choices: Int { Self.requests.count + live.count }

  mutating func carryOut(_ choice: Int) -> String? {
    if choice < Self.requests.count { return allocate(choice) }
    free(live.remove(at: choice - Self.requests.count))
    return nil
  }

  private mutating func free(_ allocation: Live) {
    memory.free(
      FrameRun(
        first: FrameNumber(Self.first + UInt32(allocation.first)), count: PageCount(allocation.count)))
    for frame in allocation.first..<allocation.first + allocation.count { roles[frame] = .free }
  }

  private mutating func allocate(_ request: Int) -> String? {
    let role = Self.requests[request]
    let run: FrameRun?
    do throws(PhysicalMemoryError) {
      if request == Self.runRequest {
        run = try memory.allocate(run: 3, where: constraints, role: role)
      } else {
        let order = BlockOrder(UInt8(request))
        run = FrameRun(first: try memory.allocate(order, role: role), count: order.frames)
      }
    } catch {
      if error != .noMemory { return "refused as \(error)" }
      run = nil
    }
    guard let run else {
      refused += 1
      let starts = (0..<Self.count).filter { allows(request, at: $0) }
      return starts.isEmpty ? nil : "request \(request) was refused, but fits at \(starts)"
    }
    granted += 1
    let count = request == Self.runRequest ? 3 : 1 << request
    let first = Int(run.first.rawValue) - Int(Self.first)
    guard allows(request, at: first), run.count.rawValue == UInt64(count) else {
      return "request \(request) got \(run), which is not free or breaks its constraints"
    }
    for frame in first..<first + count { roles[frame] = role }
    live.append(Live(first: first, count: count))
    return nil
  }

  /// Whether a request may have the frames from `first` on, by the definition of its constraints.
  private func allows(_ request: Int, at first: Int) -> Bool {
    let count = request == Self.runRequest ? 3 : 1 << request
    guard first >= 0, first + count <= Self.count, (first..<first + count).allSatisfy({ roles[$0] == .free })
    else {
      return false
    }
    if request != Self.runRequest { return first % count == 0 }
    return first >= 2 && first + count <= 14 && first % 2 == 0 && first / 8 == (first + count - 1) / 8
  }

  func check() -> String? {
    if let broken = memory.checkInvariants() { return "invariant \(broken)" }
    for frame in 0..<Self.count
    where memory.whatIs(FrameNumber(Self.first + UInt32(frame))).role != roles[frame] {
      return "the role of frame \(frame), which is \(roles[frame]) in the model"
    }
    let free = roles.count { $0 == .free }
    return memory.freeCount.rawValue == UInt64(free) ? nil : "\(memory.freeCount) free, not \(free)"
  }

  mutating func reset() -> String? {
    while let allocation = live.popLast() { free(allocation) }
    return memory.blocks(in: .below16MiB, of: BlockOrder(4)) == 1 ? nil : "the 16 frames have not coalesced"
  }

  /// Returns the mistake at the end, or nil.
  func finish() -> String? {
    TestSupport.FrameSnapshot(memory) == start ? nil : "the end differs from the start"
  }
}

final class SixteenFramesTests: XCTestCase {
  func testEverySequenceOfSixOperationsAgreesWithBruteForce() throws {
    var walk = SequenceWalk(of: 6, in: try SixteenFrames())
    if let wrong = walk.run() ?? walk.world.finish() { return XCTFail(wrong) }
    // While nothing is refused, there are 4 sequences of one operation, 20 of two and 112 of three.
    XCTAssertEqual(Array(walk.visited[..<4]), [0, 4, 20, 112])
    XCTAssertGreaterThan(walk.visited[6], 20_000)
    XCTAssertGreaterThan(walk.world.granted, 50_000)
    XCTAssertGreaterThan(walk.world.refused, 1000)
    let (granted, refused) = (walk.world.granted, walk.world.refused)
    print("16 frames: sequences by length \(walk.visited); \(granted) granted, \(refused) refused")
  }
}
