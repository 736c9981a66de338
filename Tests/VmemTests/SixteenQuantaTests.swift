// Every sequence of six operations on an arena of 16 quanta, against a list of quanta and brute force.

import MemoryPrimitives
import TestSupport
import XCTest

@testable import Vmem

/// An arena of one span of 16 quanta, beside the list of which quantum belongs to which segment.
private struct SixteenQuanta: SmallWorld {
  private enum Request: Int, CaseIterable {
    case instant1, instant5, best2, constrained3

    var count: Int {
      switch self {
      case .instant1: 1
      case .instant5: 5
      case .best2: 2
      case .constrained3: 3
      }
    }
  }

  /// Quanta from the first of the 16.
  private struct Extent: Equatable {
    var first: Int
    var count: Int
    var isFree: Bool
  }

  private static let count = 16
  private static let quantum: UInt64 = 4096
  private static let start: UInt64 = 0x10_0000

  private let fixture = VmemFixture()
  private let arena: Arena
  /// Starts at an odd quantum from the third to the thirteenth, in one half of the span.
  private let constraints = ArenaConstraints(
    alignment: Alignment(2 * Self.quantum)!, phase: ArenaSize(Self.quantum),
    nocross: Alignment(8 * Self.quantum)!, minimum: Self.address(2),
    maximum: ArenaAddress(Self.address(15).rawValue - 1))
  private var isFree = [Bool](repeating: true, count: Self.count)
  private var live: [Extent] = []
  private(set) var granted = 0
  private(set) var refused = 0

  private static func address(_ number: Int) -> ArenaAddress {
    ArenaAddress(start + UInt64(number) * quantum)
  }
  private static func size(_ count: Int) -> ArenaSize { ArenaSize(UInt64(count) * quantum) }

  init() throws {
    arena = fixture.arena(quantum: Self.quantum)
    try arena.add(Self.address(0), Self.size(Self.count))
  }

  var choices: Int { Request.allCases.count + live.count }

  mutating func carryOut(_ choice: Int) -> String? {
    if let request = Request(rawValue: choice) { return allocate(request) }
    free(live.remove(at: choice - Request.allCases.count))
    return nil
  }

  private mutating func free(_ extent: Extent) {
    arena.xfree(Self.address(extent.first), Self.size(extent.count))
    for quantum in extent.first..<extent.first + extent.count { isFree[quantum] = true }
  }

  private mutating func allocate(_ request: Request) -> String? {
    let size = Self.size(request.count)
    let address: ArenaAddress?
    do throws(VmemError) {
      switch request {
      case .instant1, .instant5: address = try arena.alloc(size)
      case .best2: address = try arena.alloc(size, policy: .bestFit)
      case .constrained3: address = try arena.xalloc(size, constraints)
      }
    } catch {
      if error != .noSpace { return "refused as \(error)" }
      address = nil
    }
    guard let address else {
      refused += 1
      let starts = (0..<Self.count).filter { allows(request, at: $0) }
      return starts.isEmpty ? nil : "\(request) was refused, but fits at \(starts)"
    }
    granted += 1
    let offset = address.rawValue &- Self.start
    let first = Int(offset / Self.quantum)
    guard offset % Self.quantum == 0, allows(request, at: first) else {
      return "\(request) got \(offset), which is not free or breaks its constraints"
    }
    // A list holds segments of one size here, so instant fit finds the smallest that is large enough, too.
    let holes = extents.filter { $0.isFree && $0.count >= request.count }
    let hole = holes.first { $0.first <= first && first < $0.first + $0.count }
    if request != .constrained3 && hole?.count != holes.map(\.count).min() {
      return "\(request) got \(first), which is not in the smallest hole"
    }
    for quantum in first..<first + request.count { isFree[quantum] = false }
    live.append(Extent(first: first, count: request.count, isFree: false))
    return nil
  }

  /// Whether a request may have the quanta from `first` on, by the definition of its constraints.
  private func allows(_ request: Request, at first: Int) -> Bool {
    let end = first + request.count
    guard end <= Self.count, (first..<end).allSatisfy({ isFree[$0] }) else { return false }
    if request != .constrained3 { return true }
    return first % 2 == 1 && first >= 2 && end <= 15 && first / 8 == (end - 1) / 8
  }

  /// The holes and live segments in the order of their quanta.
  private var extents: [Extent] {
    var all: [Extent] = []
    var at = 0
    while at < Self.count {
      var extent = Extent(first: at, count: 1, isFree: true)
      if isFree[at] {
        while at + extent.count < Self.count && isFree[at + extent.count] { extent.count += 1 }
      } else {
        extent = live.first { $0.first == at }!
      }
      all.append(extent)
      at += extent.count
    }
    return all
  }

  func check() -> String? {
    if let broken = fixture.tags.checkInvariants() { return "invariant \(broken)" }
    let extents = extents
    var next = 0
    var wrong: String?
    arena.walk { segment in
      if segment.kind == .addedSpan || wrong != nil { return }
      let found = Extent(
        first: Int((segment.first.rawValue &- Self.start) / Self.quantum),
        count: Int(segment.size.rawValue / Self.quantum), isFree: segment.kind == .free)
      if next == extents.count || found != extents[next] { wrong = "segment \(found), not as in \(extents)" }
      next += 1
    }
    if wrong == nil && next != extents.count { wrong = "\(next) segments, not \(extents.count)" }
    let free = isFree.count { $0 }
    let largest = extents.filter(\.isFree).map(\.count).max() ?? 0
    if arena.size(.free) != Self.size(free) || arena.size(.largestFree) != Self.size(largest) {
      wrong = wrong ?? "the sizes of the arena"
    }
    return wrong
  }

  mutating func reset() -> String? {
    while let extent = live.popLast() { free(extent) }
    return arena.size(.largestFree) == Self.size(Self.count) ? nil : "the 16 quanta have not coalesced"
  }
}

final class SixteenQuantaTests: XCTestCase {
  func testEverySequenceOfSixOperationsAgreesWithBruteForce() throws {
    var walk = SequenceWalk(of: 6, in: try SixteenQuanta())
    if let wrong = walk.run() { return XCTFail(wrong) }
    // While nothing is refused, there are 4 sequences of one operation and 20 of two.
    XCTAssertEqual(Array(walk.visited[..<3]), [0, 4, 20])
    XCTAssertGreaterThan(walk.visited[6], 20_000)
    XCTAssertGreaterThan(walk.world.granted, 50_000)
    XCTAssertGreaterThan(walk.world.refused, 1000)
    let (granted, refused) = (walk.world.granted, walk.world.refused)
    print("16 quanta: sequences by length \(walk.visited); \(granted) granted, \(refused) refused")
  }
}
