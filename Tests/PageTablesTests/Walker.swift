// A walker of x86-64 tables that shares nothing with the code under test: the bits are written down
// here once more, from Intel SDM vol. 3, tables 4-15 to 4-20 and 12-12.

import CPlatform
import Foundation
import HostMachine
import MemoryPrimitives
import PageTables
import XCTest

struct Walked: Equatable {
  var physical: UInt64
  var pageShift: UInt64
  var writable: Bool
  var executable: Bool
  var global: Bool
  /// The memory type by the byte that IA32_PAT holds for it.
  var memoryType: UInt8
}

struct Walker {
  let base: UInt64
  let root: UInt64
  let levels: Int

  /// The word that decides on `address`, and at which level it stands.
  func word(_ address: UInt64) -> (UnsafeMutablePointer<UInt64>, Int)? {
    var table = root
    for level in (1...levels).reversed() {
      let index = (address >> UInt64(12 + 9 * (level - 1))) % 512
      let word = UnsafeMutablePointer<UInt64>(bitPattern: UInt(base + table + index * 8))!
      if word.pointee & 1 == 0 { return nil }
      if level == 1 || word.pointee & 0x80 != 0 {
        if level > 3 { XCTFail("a leaf above level 3") }
        return (word, level)
      }
      // Rights of a leaf hold only if no table on the way takes them.
      if word.pointee & 0x8000_0000_0000_0002 != 2 { XCTFail("a table narrows rights") }
      table = word.pointee & 0x000f_ffff_ffff_f000
    }
    return nil
  }

  func walk(_ address: UInt64) -> Walked? {
    guard let (word, level) = word(address) else { return nil }
    let entry = word.pointee
    let shift = UInt64(3 + 9 * level)
    let patBit = level == 1 ? (entry >> 7) & 1 : (entry >> 12) & 1
    let index = patBit * 4 + ((entry >> 4) & 1) * 2 + (entry >> 3) & 1
    let page = entry & 0x000f_ffff_ffff_f000 & ~((1 << shift) - 1)
    return Walked(
      physical: page | (address & ((1 << shift) - 1)), pageShift: shift, writable: entry & 2 != 0,
      executable: entry >> 63 == 0, global: entry & 0x100 != 0,
      memoryType: UInt8((CacheAttribute.tableRegister >> (8 * index)) & 7))
  }
}

/// The types' bytes in IA32_PAT (SDM vol. 3, table 12-10).
func memoryType(_ attribute: CacheAttribute) -> UInt8 {
  switch attribute {
  case .writeBack: 6
  case .writeThrough: 4
  case .uncached: 0
  case .writeCombining: 1
  }
}

/// Frames for tables, with a limit, which detects a frame that is freed twice.
final class TestFrames: @unchecked Sendable {
  private let lock = NSLock()
  private var free: [UInt32]
  private(set) var out: Set<UInt32> = []
  var limit = Int.max
  /// Called before a frame is free again.
  var atGive: ((FrameNumber) -> Void)?

  init(_ frames: Range<UInt32>) { free = Array(frames) }

  var source: FrameSource {
    FrameSource(
      Unmanaged.passUnretained(self).toOpaque(),
      allocateFrame: { Unmanaged<TestFrames>.fromOpaque($0!).takeUnretainedValue().allocate() },
      freeFrame: { Unmanaged<TestFrames>.fromOpaque($0!).takeUnretainedValue().free($1) })
  }

  private func allocate() -> UInt32 {
    XCTAssertTrue(holdsNoSpinLock())
    return lock.withLock {
      guard out.count < limit, let frame = free.popLast() else { return UInt32.max }
      out.insert(frame)
      return frame
    }
  }

  private func free(_ frame: UInt32) {
    XCTAssertTrue(holdsNoSpinLock())
    atGive?(FrameNumber(frame))
    lock.withLock {
      XCTAssertNotNil(out.remove(frame), "a frame came back that was not out")
      free.append(frame)
    }
  }
}

/// A machine with tables of its own.
final class PageTablesFixture: @unchecked Sendable {
  let host: SimulatedMachine
  let frames: TestFrames
  let tables: PageMap
  let walker: Walker
  let memory = UnsafeMutableRawPointer.allocate(byteCount: 4096, alignment: 64)

  init(
    levels: PagingLevels = .four, largest: LargestLeaf = .mebibytes2, memory size: ByteCount = .mebibytes(64)
  ) {
    host = SimulatedMachine(memory: size, processors: 2)
    frames = TestFrames(16..<4096)
    memory.initializeMemory(as: UInt8.self, repeating: 0, count: 4096)
    // Frames arrive with unknown contents.
    for frame in UInt32(16)..<4096 {
      host.machine.directMap.pointer(to: FrameNumber(frame)).storeBytes(of: ~0, as: UInt64.self)
    }
    tables = try! PageMap(
      in: memory, machine: host.machine, levels: levels, largestLeaf: largest, frames: frames.source)
    walker = Walker(
      base: host.machine.directMap.base, root: tables.root.rawValue, levels: levels == .four ? 4 : 5)
  }

  deinit { memory.deallocate() }

  func check(_ message: @autoclosure () -> String = "", line: UInt = #line) {
    if let broken = tables.checkInvariants() { XCTFail("\(broken) \(message())", line: line) }
    XCTAssertEqual(
      tables.tableCount.rawValue + tables.reservedTableCount.rawValue, UInt64(frames.out.count), message(),
      line: line
    )
  }

  /// The number of the first broken invariant, as the message of the check begins.
  var brokenInvariant: String? { tables.checkInvariants().map { "\($0)".components(separatedBy: ":")[0] } }

  /// All that can be seen of the tables.
  struct Picture: Equatable {
    var runs: [[UInt64]] = []
    var tables: UInt64
    var spares: UInt64
    var out: Set<UInt32>
  }
  func picture() -> Picture {
    var picture = Picture(
      tables: tables.tableCount.rawValue, spares: tables.reservedTableCount.rawValue, out: frames.out)
    tables.forEachRun {
      picture.runs.append([
        $0.address.rawValue, $0.physical.rawValue, $0.count.rawValue, UInt64($0.level.rawValue),
        UInt64($0.protection.rawValue), UInt64($0.attribute.rawValue),
      ])
    }
    return picture
  }
}

let kernelBase: UInt64 = 0xffff_c000_0000_0000
func va(_ page: UInt64, base: UInt64 = kernelBase) -> VirtualAddress { VirtualAddress(base + page << 12) }
func pa(_ frame: UInt64) -> PhysicalAddress { PhysicalAddress(frame << 12) }
