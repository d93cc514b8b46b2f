import java.net.InetAddress;
import java.net.URL;

/** Get HOST [GET]: prints the first address of a name, and with a second word what its web server says. */
public class Get {
    public static void main(String[] args) throws Exception {
        System.out.println(InetAddress.getByName(args[0]).getHostAddress());
        if (args.length > 1) {
            try (var in = new URL("http://" + args[0] + "/").openStream()) {
                in.transferTo(System.out);
            }
        }
    }
}
