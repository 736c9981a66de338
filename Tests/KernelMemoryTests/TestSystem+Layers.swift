// A test system with the firmware's map, occupied ranges and image of the test's choice, and pictures of all its
// layers.

import HostMachine
import KernelMemory
import KernelSpace
import Kmem
import MemoryPrimitives
import PageTables
import PhysicalMemory
import TestSupport
import Vmem

extension TestSystem {
  convenience init(
    _ host: SimulatedMachine, _ map: [FirmwareRange], occupied: [OccupiedRange] = [],
    image: [ImageSegment] = [],
    carveOut: CarveOut = CarveOut(), largestLeaf: LargestLeaf = .mebibytes2, levels: PagingLevels = .four,
    activate: (PhysicalAddress) -> Void = { _ in }
  ) throws {
    var options = HostSystem.Options()
    options.occupied = occupied
    options.image = image
    options.carveOut = carveOut
    options.largestLeaf = largestLeaf
    options.levels = levels
    try self.init(on: host, options.over(map), activate: activate)
  }

  /// Frames by role, ranges by kind, what is mapped, and what kmem's users hold.
  struct LayerPicture: Equatable {
    var roles: [FrameRole: UInt64] = [:]
    var ranges: [RangeKind: [UInt64]] = [:]
    var arenas: [[UInt64]] = []
    var mapped: [[UInt64]] = []
    var kmem: UInt64 = 0
  }

  /// Drains kmem first, so that two pictures of one state are equal. Tags are allocated and freed by the page; `tags`
  /// says whether the picture has them.
  func layerPicture(tags: Bool = true) -> LayerPicture {
    kmem.drain()
    var picture = LayerPicture(kmem: kmem.usedBytes.rawValue)
    for number in 0..<UInt8(FrameRole.count) {
      let role = FrameRole(rawValue: number)!
      if !tags && (role == .tags || role == .free) { continue }
      picture.roles[role] = physical.count(role).rawValue
    }
    RangeKind.forEach { picture.ranges[$0] = [space.pages($0).rawValue, space.rangeCount($0)] }
    space.tags.forEachArena {
      picture.arenas.append([$0.size(.allocated).rawValue, $0.size(.free).rawValue])
    }
    tables.forEachRun {
      picture.mapped.append([
        $0.address.rawValue, $0.physical.rawValue, $0.count.rawValue, UInt64($0.protection.rawValue),
        UInt64($0.attribute.rawValue), UInt64($0.level.rawValue),
      ])
    }
    return picture
  }

  func type(_ name: StaticString = "test") -> MemoryType { kmem.type(named: ShortName(name)) }
}
