import HostMachine
import MemoryPrimitives
import PhysicalMemory
import XCTest

@testable import strata

/// The trial of a layout, its fragmented memory and its sizes.
final class LayoutTrialTests: XCTestCase {
  private func system() throws -> HostSystem { try HostSystem(toolMemory: .mebibytes(24)) }

  func testFragmentedMemoryHasAsManyFreeFramesAsAsked() throws {
    let system = try system()
    let physical = system.memory.physical
    let before = physical.freeCount
    do {
      let memory = FragmentedMemory(physical, of: system)
      XCTAssertEqual(physical.freeCount, .zero)
      memory.withFree(200, .everySecond, seed: 1) {
        XCTAssertEqual(physical.freeCount, PageCount(200))
        let supply = FrameSupply(physical)
        XCTAssertNil(supply.allocate(order: 1), "no two free frames are neighbours")
        let frames = (0..<200).compactMap { _ in supply.allocate() }
        XCTAssertEqual(Set(frames.map(\.rawValue)).count, 200)
        XCTAssertNil(supply.allocate())
        XCTAssertEqual(supply.held, 200)
        for frame in frames { supply.free(frame) }
      }
      memory.withFree(200, .randomQuarter, seed: 1) {
        XCTAssertEqual(physical.freeCount, PageCount(200))
        let supply = FrameSupply(physical)
        var blocks: [FrameNumber] = []
        while let block = supply.allocate(order: 1) { blocks.append(block) }
        // Of 400 pairs a sixteenth is free.
        XCTAssertTrue((5...60).contains(blocks.count), "\(blocks.count)")
        for block in blocks { supply.free(block, order: 1) }
      }
      XCTAssertEqual(physical.freeCount, .zero)
    }
    XCTAssertEqual(physical.freeCount, before)
    XCTAssertNil(system.memory.checkInvariants())
  }

  func testAnOrderOneBlockIsRefusedWhereNoPairIsFree() throws {
    let system = try system()
    let memory = FragmentedMemory(system.memory.physical, of: system)
    memory.withFree(50, .everySecond, seed: 1) {
      let supply = FrameSupply(system.memory.physical)
      let blocks = OrderOneBlocks(supply)
      XCTAssertNil(blocks.store(2500), "three of them are a block of two pages")
      XCTAssertEqual(blocks.held, HeldFrames(data: 0, tables: 0, headers: 0))
      let object = blocks.store(4000)
      XCTAssertNotNil(object, "a page of its own is a single one")
      if let object { blocks.free(object) }
      XCTAssertEqual(supply.held, 0)
      // The same objects in chains of single pages.
      let chains = LinuxChains(.linux61, supply)
      let objects = (0..<3).compactMap { _ in chains.store(2500) }
      XCTAssertEqual(objects.count, 3)
      for object in objects { chains.free(object) }
      XCTAssertEqual(supply.held, 0)
    }
  }

  func testALayoutRefusesWithoutAnyLoss() throws {
    let system = try system()
    let memory = FragmentedMemory(system.memory.physical, of: system)
    for kind in StudiedLayout.allCases {
      for free in [0, 1, 2, 5, 17] {
        memory.withFree(free, .everySecond, seed: 1) {
          let supply = FrameSupply(system.memory.physical)
          let layout = kind.make(on: system.memory, supply)
          var (objects, refused) = ([Int](), 0)
          for size in [3000, 100, 700, 4096, 2100, 1500, 3500] where refused < 20 {
            for _ in 0..<20 {
              let before = layout.held
              if let object = layout.store(size) {
                objects.append(object)
              } else {
                refused += 1
                XCTAssertEqual(layout.held, before, "\(kind)")
              }
            }
          }
          XCTAssertGreaterThan(refused, 0, "\(kind)")
          XCTAssertLessThanOrEqual(layout.held.frames, UInt64(free), "\(kind)")
          for object in objects { layout.free(object) }
          XCTAssertEqual(layout.held.frames, 0, "\(kind)")
          XCTAssertEqual(system.memory.physical.freeCount, PageCount(UInt64(free)), "\(kind)")
        }
      }
    }
    XCTAssertNil(system.memory.checkInvariants())
  }

  func testATrialIsTheSameEachTime() throws {
    let sizes = SizeSample.uniform(150, seed: 3).sizes
    for kind in StudiedLayout.allCases {
      let outcomes = try (0..<2).map { _ in
        let system = try system()
        return try LayoutTrial(layout: kind, sizes: sizes, seed: 3, memory: system.memory).run()
      }
      let one = outcomes[0]
      XCTAssertEqual("\(one)", "\(outcomes[1])")
      XCTAssertEqual(one.objects, 150)
      for density in [one.filled, one.filledCompacted, one.halved, one.halvedCompacted, one.refilled] {
        if let density { XCTAssertTrue(density > 0.1 && density <= 1, "\(kind): \(one)") }
      }
      XCTAssertEqual(one.filledCompacted == nil, ![.strata, .linux61, .linux63].contains(kind))
      XCTAssertLessThan(one.halved, one.filled)
      XCTAssertGreaterThanOrEqual(one.halvedCompacted ?? 1, one.halved)
      // Layouts of single pages are refused by nothing but their own rule.
      XCTAssertEqual(one.refused, kind == .zbud ? sizes.count { $0 > 3968 } : 0)
      XCTAssertEqual(one.refusedEverySecond > one.refused, kind == .orderOne, "\(kind)")
    }
  }

  func testSizesAreThoseOfTheirDistribution() {
    for sample in [
      SizeSample.uniform(4000, seed: 1), .exponential(4000, seed: 1), .bimodal(4000, seed: 1),
    ] {
      XCTAssertEqual(sample.sizes.count, 4000)
      XCTAssertTrue(sample.sizes.allSatisfy { (1...4096).contains($0) }, sample.name)
      XCTAssertEqual(sample.bytes, sample.sizes.reduce(0) { $0 + UInt64($1) })
    }
    XCTAssertEqual(SizeSample.uniform(9, seed: 1).sizes, SizeSample.uniform(9, seed: 1).sizes)
    XCTAssertNotEqual(SizeSample.uniform(9, seed: 1).sizes, SizeSample.uniform(9, seed: 2).sizes)
    XCTAssertTrue((1900...2200).contains(SizeSample.uniform(4000, seed: 1).mean))
    // The mean of an exponential of 1024 below 4097.
    XCTAssertTrue((900...1000).contains(SizeSample.exponential(4000, seed: 1).mean))
    let bimodal = SizeSample.bimodal(4000, seed: 1).sizes
    XCTAssertTrue(bimodal.allSatisfy { (200...700).contains($0) || (2200...3000).contains($0) })
    XCTAssertTrue((1800...2200).contains(bimodal.count { $0 < 1000 }))
  }

  func testAPermutationHasEachNumberOnce() {
    for count in [0, 1, 2, 100] {
      XCTAssertEqual(permutation(of: count, seed: 5).sorted(), Array(0..<count))
    }
    XCTAssertNotEqual(permutation(of: 100, seed: 5), permutation(of: 100, seed: 6))
    // Each of the six orders of three comes as often as any other.
    var counts: [[Int]: Int] = [:]
    for seed in 0..<6000 { counts[permutation(of: 3, seed: UInt64(seed)), default: 0] += 1 }
    XCTAssertEqual(counts.count, 6)
    XCTAssertTrue(counts.values.allSatisfy { (850...1150).contains($0) }, "\(counts)")
  }
}
