import MemoryPrimitives
import Synchronization
import XCTest

@testable import Kmem
@testable import Magazines
@testable import PhysicalMemory

final class KmemInvariantTests: XCTestCase {
  /// Two object caches with free objects in slabs and in magazines, one of them with slabs of several frames.
  private struct Instance {
    let rig: KmemFixture
    let small: CachePointer
    let large: CachePointer
    let slab: Slab

    init() throws {
      let rig = try KmemFixture()
      let type = rig.type()
      func fill(_ name: StaticString, _ size: Int) throws -> (CachePointer, UnsafeMutableRawPointer) {
        let cache = try rig.kmem.createCache(name: ShortName(name), size: ByteCount(size))
        let objects = (0..<60).map { _ in cache.alloc(type: type)! }
        for object in objects[20..<40] { cache.free(object, type: type) }
        cache.drain()
        for object in objects[40...] { cache.free(object, type: type) }
        return (cache.pointer!, objects[0])
      }
      let (small, object) = try fill("small", 64)
      self.rig = rig
      self.small = small
      large = try fill("large", 2688).0
      slab = rig.kmem.locate(VirtualAddress(object))!.slab
    }
  }

  private func breaks(
    _ number: Int, _ instance: Instance, _ damage: () -> Void, _ repair: () -> Void, line: UInt = #line
  ) {
    instance.rig.check("before", #filePath, line)
    damage()
    let broken = instance.rig.kmem.checkInvariants().map { "\($0)" } ?? "none"
    XCTAssertTrue(broken.hasPrefix("KM-\(number): "), broken, line: line)
    repair()
    instance.rig.check("after", #filePath, line)
  }

  func testTheCheckNamesTheInvariantOfASlabOrACacheThatIsBroken() throws {
    let all = try Instance()
    let (small, slab) = (all.small, all.slab)
    breaks(1, all, { slab.out += 1 }, { slab.out -= 1 })
    breaks(1, all, { slab.record.previous = FrameNumber(7) }, { slab.record.previous = .none })
    breaks(
      2, all, { small.descriptor.lists.withLock { $0.objects += 1 } },
      { small.descriptor.lists.withLock { $0.objects -= 1 } })
    var severalFrames: Slab?
    all.large.forEachSlab { if $0.frames > 1 { severalFrames = $0 } }
    let second = all.rig.physical.record(try XCTUnwrap(severalFrames).frame + 1)!
    breaks(5, all, { second.owner ^= 1 }, { second.owner ^= 1 })
    let free = try XCTUnwrap((0..<slab.objects).first { slab.isFree($0) })
    let object = small.object(slab, free)
    breaks(9, all, { small.setWord(of: object, 1) }, { small.setWord(of: object, FreeWord.of(object)) })
  }

  func testTheCheckNamesTheInvariantOfTheMagazinesThatIsBroken() throws {
    let all = try Instance()
    let small = all.small
    let slot = small.magazines.slot(0)
    let word = slot.pointee.loaded[0]
    breaks(3, all, { slot.pointee.loaded[0] = 1 }, { slot.pointee.loaded[0] = word })
    breaks(
      6, all, { small.descriptor.audit.store(1, ordering: .relaxed) },
      { small.descriptor.audit.store(0, ordering: .relaxed) })
    let type = all.rig.type()
    breaks(4, all, { type.countAllocation(small.cacheIndex) }, { type.countFree(small.cacheIndex) })
  }

  func testTheCheckNamesTheInvariantOfTheInstanceThatIsBroken() throws {
    let all = try Instance()
    let kmem = all.rig.kmem
    breaks(
      7, all, { kmem.state.slabFrames.add(1, ordering: .relaxed) },
      { kmem.state.slabFrames.subtract(1, ordering: .relaxed) })
    breaks(
      7, all, { kmem.state.depotBytes.add(1, ordering: .relaxed) },
      { kmem.state.depotBytes.subtract(1, ordering: .relaxed) })
    breaks(
      8, all, { kmem.ownType.countAllocation(CacheIndex.largePages) },
      { kmem.ownType.countFree(CacheIndex.largePages) })
  }
}
