import HostMachine
import KernelSpace
import MemoryPrimitives
import PageTables
import PhysicalMemory
import TestSupport
import Workloads
import XCTest

/// Kernel space driven by random operations, beside a list of what is live and a stamp in each frame.
private final class KernelSpaceHistory {
  enum Live {
    case wired(VirtualAddress, PageCount)
    case stack(KernelStack)
    case device(VirtualAddress, ByteCount)
    case contiguous(ContiguousRange, CacheAttribute)
    case given(VirtualAddress, FrameRun, CacheAttribute)
    case pageable(VirtualAddress, PageCount)
  }

  private static let attributes: [CacheAttribute] = [.writeBack, .writeThrough, .uncached, .writeCombining]

  private let seed: UInt64
  private let bed: KernelSpaceFixture
  private let processor: RememberingProcessor
  private let before: KernelSpaceFixture.Picture
  private var random: SeededRandom
  private var live: [Live] = []
  /// The stamp of each frame.
  private var stamps: [UInt32: UInt64] = [:]
  /// Frames that are mapped in pageable ranges, by address.
  private var resident: [UInt64: FrameNumber] = [:]
  /// The wired memory of another processor, and how often that processor acted.
  private var others: [(VirtualAddress, PageCount)] = []
  private var acted = 0

  private var space: KernelAddressSpace { bed.space }

  init(seed: UInt64) throws {
    self.seed = seed
    bed = try KernelSpaceFixture(memory: .mebibytes(8))
    processor = RememberingProcessor(bed)
    before = bed.picture(tags: false)
    random = SeededRandom(seed: seed)
  }

  func run(operations: Int) throws {
    defer { processor.end() }
    processor.atInvalidation = { [unowned self] in actElsewhere() }
    for operation in 0..<operations {
      do {
        try step()
      } catch let error as KernelSpaceError {
        XCTAssertEqual(error, .noMemory, "seed \(seed), operation \(operation)")
      }
      bed.check("seed \(seed), operation \(operation)")
      checkAliases()
    }
    processor.atInvalidation = nil
    for item in live { free(item) }
    for (address, count) in others { space.freeWired(address, count) }
    XCTAssertGreaterThan(acted, 0)
    bed.check("seed \(seed), at the end")
    XCTAssertEqual(bed.picture(tags: false), before, "seed \(seed)")
  }

  // MARK: Stamps

  private func stamp(_ address: VirtualAddress, _ count: PageCount) {
    for page in 0..<count.rawValue {
      guard let frame = bed.frame(address + PageCount(page)) else {
        return XCTFail("seed \(seed): page \(page) is not mapped")
      }
      XCTAssertEqual(processor.reach(address + PageCount(page)), frame, "seed \(seed)")
      XCTAssertNil(stamps[frame.rawValue], "seed \(seed): a frame was given out twice")
      stamps[frame.rawValue] = random.next()
      bed.bytes(frame)[100] = stamps[frame.rawValue]!
    }
  }

  private func unstamp(_ address: VirtualAddress, _ count: PageCount) {
    for page in 0..<count.rawValue {
      guard let frame = bed.frame(address + PageCount(page)) else {
        return XCTFail("seed \(seed): page \(page) is not mapped")
      }
      XCTAssertEqual(processor.reach(address + PageCount(page)), frame, "seed \(seed)")
      XCTAssertEqual(bed.bytes(frame)[100], stamps.removeValue(forKey: frame.rawValue), "seed \(seed)")
    }
  }

  // MARK: Another processor

  /// Acts as another processor, with wired memory of its own, while translations are shot down.
  private func actElsewhere() {
    guard random.oneIn(4) else { return }
    acted += 1
    if let (address, count) = others.last, random.oneIn(2) {
      for page in 0..<count.rawValue {
        XCTAssertEqual(processor.reach(address + PageCount(page)), bed.frame(address + PageCount(page)))
      }
      others.removeLast()
      space.freeWired(address, count)
    } else {
      let count = PageCount(1 + random.below(6))
      guard let address = try? space.allocateWired(count, from: random.oneIn(2) ? .kernel : .metadata)
      else { return }
      for page in 0..<count.rawValue {
        XCTAssertEqual(
          processor.reach(address + PageCount(page)), bed.frame(address + PageCount(page)),
          "seed \(seed): memory that was just mapped faults")
      }
      others.append((address, count))
    }
  }

  // MARK: Operations

  private func size() -> PageCount { PageCount(1 + random.below(random.oneIn(10) ? 700 : 40)) }

  /// Carries out one random operation.
  private func step() throws {
    let attribute = Self.attributes[Int(random.below(4))]
    let priority: AllocationPriority = [.normal, .system, .interrupt][Int(random.below(3))]
    switch random.below(16) {
    case 0, 1:
      let arena: WiredArena = [.heap, .metadata, .interrupt, .kernel][Int(random.below(4))]
      let count = size()
      let address = try space.allocateWired(
        count, from: arena, priority: priority, contents: random.oneIn(2) ? .zero : .unknown)
      stamp(address, count)
      live.append(.wired(address, count))
    case 2:
      let stack = try space.allocateStack(PageCount(1 + random.below(8)), priority: priority)
      stamp(stack.bottom, stack.count)
      live.append(.stack(stack))
    case 3:
      let start = 0x1_0000_0000 + random.below(1 << 24)
      let length = ByteCount(1 + random.below(random.oneIn(3) ? 8 << 20 : 9000))
      live.append(.device(try space.mapDevice(PhysicalAddress(start), length, attribute), length))
    case 4:
      let range = try space.allocateContiguous(size(), attribute: attribute, priority: priority)
      stamp(range.address, range.frames.count)
      live.append(.contiguous(range, attribute))
    case 5: try mapLoanedFrames(attribute, priority)
    case 6: try mapContiguousFrames(attribute, priority)
    case 7:
      let count = size()
      live.append(.pageable(try space.reservePageable(count, priority: priority), count))
    case 8, 9:
      for case .pageable(let address, let count) in live {
        for _ in 0..<8 { try toggle(address + PageCount(random.below(count.rawValue))) }
      }
    default:
      guard !live.isEmpty else { return }
      let index = Int(random.below(UInt64(live.count)))
      free(live.remove(at: index))
    }
  }

  private func mapLoanedFrames(_ attribute: CacheAttribute, _ priority: AllocationPriority) throws {
    let run: FrameRun
    do {
      run = try bed.physical.allocate(run: PageCount(1 + random.below(20)), role: .loaned)
    } catch { throw KernelSpaceError.noMemory }
    do {
      let address = try space.mapFrames(run, attribute, priority: priority)
      stamp(address, run.count)
      live.append(.given(address, run, attribute))
    } catch {
      bed.physical.free(run)
      throw error
    }
  }

  private func mapContiguousFrames(_ attribute: CacheAttribute, _ priority: AllocationPriority) throws {
    let count = size()
    let run: FrameRun
    do {
      run = try bed.physical.allocate(run: count, role: .contiguous)
    } catch { throw KernelSpaceError.noMemory }
    do {
      let address = try space.mapContiguous(run, attribute: attribute, priority: priority)
      stamp(address, count)
      live.append(.contiguous(ContiguousRange(address: address, frames: run), attribute))
    } catch {
      bed.physical.free(run)
      throw error
    }
  }

  /// Brings a page of a pageable range in, or removes it when it is there.
  private func toggle(_ page: VirtualAddress) throws(KernelSpaceError) {
    if let frame = resident[page.rawValue] {
      XCTAssertEqual(bed.tables.access(page, .write), frame, "seed \(seed)")
      unstamp(page, .one)
      XCTAssertEqual(bed.tables.remove(page)?.frame, frame, "seed \(seed)")
      bed.host.machine.shootDown(page, .one)
      resident[page.rawValue] = nil
      bed.physical.free(FrameRun(first: frame, count: .one))
    } else {
      XCTAssertNil(bed.tables.access(page, .read), "seed \(seed)")
      do {
        let frame = try bed.physical.allocate(run: .one, role: .loaned).first
        bed.tables.enter(page, frame, .kernelData)
        resident[page.rawValue] = frame
      } catch { throw .noMemory }
      stamp(page, .one)
    }
  }

  private func free(_ item: Live) {
    switch item {
    case .wired(let address, let count):
      unstamp(address, count)
      space.freeWired(address, count)
    case .stack(let stack):
      unstamp(stack.bottom, stack.count)
      space.freeStack(stack)
    case .device(let address, let length):
      space.unmapDevice(address, length)
    case .contiguous(let range, _):
      unstamp(range.address, range.frames.count)
      space.freeContiguous(range.address, range.frames.count)
    case .given(let address, let run, _):
      unstamp(address, run.count)
      space.unmapFrames(address, run.count)
      bed.physical.free(run)
    case .pageable(let address, let count):
      for page in 0..<count.rawValue where resident[(address + PageCount(page)).rawValue] != nil {
        try? toggle(address + PageCount(page))
      }
      space.releasePageable(address, count)
    }
  }

  // MARK: Aliases

  /// Checks that exactly the frames that are mapped with another attribute have another alias.
  private func checkAliases() {
    for item in live {
      let (frame, attribute): (FrameNumber?, CacheAttribute) =
        switch item {
        case .wired(let address, _): (bed.frame(address), .writeBack)
        case .stack(let stack): (bed.frame(stack.bottom), .writeBack)
        case .device: (nil, .writeBack)
        case .contiguous(let range, let attribute): (range.frames.first, attribute)
        case .given(_, let run, let attribute): (run.first, attribute)
        case .pageable(let address, _): (resident[address.rawValue], .writeBack)
        }
      if let frame { XCTAssertEqual(bed.alias(frame)?.attribute, attribute, "seed \(seed)") }
    }
  }
}

/// Random histories against a list of what is live, with the full check after each operation.
final class KernelSpaceModelTests: XCTestCase {
  func testRandomHistoriesAgreeWithAModel() throws {
    for seed in historySeeds(1, count: 3) { try KernelSpaceHistory(seed: seed).run(operations: 300) }
  }
}
